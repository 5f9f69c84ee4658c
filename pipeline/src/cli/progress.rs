//! Progress bars on standard error; none where that is not a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use orderflow::job_plan::{Progress, ProgressFn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// The place where bars are drawn.
#[derive(Clone)]
pub(super) struct Display {
    bars: MultiProgress,
    visible: bool,
}

impl Display {
    /// Draws only where `wanted` and standard error is a terminal.
    pub(super) fn new(wanted: bool) -> Self {
        let visible = wanted && io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr_with_hz(8) } else { ProgressDrawTarget::hidden() };
        Display { bars: MultiProgress::with_draw_target(target), visible }
    }

    /// A bar of `what` (for example `rows`), spinning until its total is known.
    pub(super) fn bar(&self, title: &'static str, what: &str) -> ProgressBar {
        let bar = self.bars.add(ProgressBar::no_length());
        if self.visible {
            bar.set_style(style("{prefix:<12} {spinner} {human_pos} WHAT {per_sec} {msg}", what));
            bar.set_prefix(title);
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    /// A bar that a job's progress drives.
    pub(super) fn job_bar(&self, title: &'static str) -> (ProgressBar, ProgressFn) {
        let bar = self.bar(title, "rows");
        let shown = bar.clone();
        let report = move |progress: Progress| {
            if let Some(total) = progress.rows_total {
                set_total(&shown, total, "rows");
            }
            shown.set_position(progress.rows_done);
            let at = if progress.draining { "waiting for sinks" } else { "committed" };
            shown.set_message(format!("epoch {}, {at} {}", progress.epoch, progress.epoch_committed));
        };
        (bar, Arc::new(report))
    }

    /// Where logs go, so that they do not run into a bar.
    pub(super) fn log_writer(&self) -> BoxMakeWriter {
        if self.visible { BoxMakeWriter::new(AboveBars(self.bars.clone())) } else { BoxMakeWriter::new(io::stderr) }
    }
}

/// Says how much there is in all.
pub(super) fn set_total(bar: &ProgressBar, total: u64, what: &str) {
    if bar.length() != Some(total) {
        bar.set_length(total);
        bar.set_style(style("{prefix:<12} {wide_bar:.cyan/blue} {percent:>3} % {human_pos} WHAT {per_sec} eta {eta} {msg}", what));
    }
}

fn style(template: &str, what: &str) -> ProgressStyle {
    ProgressStyle::with_template(&template.replace("WHAT", what)).expect("templates are constant and valid")
}

struct AboveBars(MultiProgress);

impl<'a> MakeWriter<'a> for AboveBars {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bars: self.0.clone(), text: Vec::new() }
    }
}

/// One log line, written as a whole when it is dropped, with the bars out of its way.
struct Line {
    bars: MultiProgress,
    text: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // A log line that cannot be written has nowhere to be reported.
        self.bars.suspend(|| io::stderr().write_all(&self.text).unwrap_or_default());
    }
}
