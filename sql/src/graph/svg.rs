//! A stage's graph as a picture, without another program.
//!
//! # Design
//!
//! Each node stands in a column behind all of its inputs (the longest way from a source), sinks in the last one. In a column nodes are ordered by the mean height of
//! their inputs, which keeps most edges from crossing, and stacked. A picture of a few dozen boxes needs no more; for others there is `--format dot`.

use std::fmt::Write as _;

use super::{Graph, Kind};

/// Of a character; pixels. Fonts of fixed width are about that wide at this size.
const CHAR_WIDTH: usize = 7;
const LINE_HEIGHT: usize = 16;
const PADDING: usize = 8;
const COLUMN_GAP: usize = 70;
const ROW_GAP: usize = 24;
/// A longer line is broken.
const LINE_CHARS_MAX: usize = 44;
/// More lines of a box are left out.
const LINES_MAX: usize = 12;

struct Shape {
    lines: Vec<String>,
    is_sink: bool,
    /// Inputs, and how the edge looks: `exchange`, `lookup` or nothing.
    inputs: Vec<(usize, &'static str)>,
    column: usize,
    at: (usize, usize),
}

impl Shape {
    fn width(&self) -> usize {
        self.lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) * CHAR_WIDTH + 2 * PADDING
    }
    fn height(&self) -> usize {
        self.lines.len() * LINE_HEIGHT + 2 * PADDING
    }
}

/// The graph as an SVG document.
pub(super) fn to_svg(graph: &Graph) -> String {
    let shapes = placed(graph);
    let width = shapes.iter().map(|shape| shape.at.0 + shape.width()).max().unwrap_or(0) + PADDING;
    let height = shapes.iter().map(|shape| shape.at.1 + shape.height()).max().unwrap_or(0) + PADDING;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"12\">\n\
         <defs><marker id=\"head\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"8\" markerHeight=\"8\" orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for shape in &shapes {
        for (input, look) in &shape.inputs {
            let from = &shapes[*input];
            let start = (from.at.0 + from.width(), from.at.1 + from.height() / 2);
            let end = (shape.at.0, shape.at.1 + shape.height() / 2);
            let middle = (start.0 + end.0) / 2;
            let style = match *look {
                "exchange" => " stroke-width=\"2\"",
                "lookup" => " stroke-dasharray=\"5 3\"",
                _ => "",
            };
            let (x, y) = start;
            let (to_x, to_y) = end;
            let _ = writeln!(
                svg,
                "<path d=\"M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}\" fill=\"none\" stroke=\"black\"{style} marker-end=\"url(#head)\"/>"
            );
            if !look.is_empty() {
                let _ = writeln!(
                    svg,
                    "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\">{look}</text>",
                    (y + to_y) / 2 - 4
                );
            }
        }
    }
    for shape in &shapes {
        let (x, y) = shape.at;
        let (fill, corner) = if shape.is_sink { ("#e8f0e8", 12) } else { ("#f4f4fa", 3) };
        let (shape_width, shape_height) = (shape.width(), shape.height());
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{shape_width}\" height=\"{shape_height}\" rx=\"{corner}\" fill=\"{fill}\" stroke=\"black\"/>"
        );
        for (place, line) in shape.lines.iter().enumerate() {
            let baseline = y + PADDING + place * LINE_HEIGHT + 12;
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{baseline}\" xml:space=\"preserve\">{}</text>", x + PADDING, escaped(line));
        }
    }
    svg + "</svg>\n"
}

/// The boxes, and where they stand.
fn placed(graph: &Graph) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    for node in &graph.nodes {
        let exchange = |i: usize| if matches!(node.exchange.get(i), Some(Some(_))) { "exchange" } else { "" };
        let mut inputs: Vec<_> = node.inputs.iter().enumerate().map(|(i, input)| (*input, exchange(i))).collect();
        if let Kind::Lookup { table, .. } = node.kind {
            inputs.push((table, "lookup"));
        }
        let column = inputs.iter().map(|(input, _)| shapes[*input].column + 1).max().unwrap_or(0);
        shapes.push(Shape { lines: broken(&node.label), is_sink: false, inputs, column, at: (0, 0) });
    }
    let last = shapes.iter().map(|shape| shape.column + 1).max().unwrap_or(0);
    for sink in &graph.sinks {
        let name = if sink.table.is_empty() { "query" } else { &sink.table };
        let label = if sink.updating { format!("{name}\n(updating)") } else { name.to_owned() };
        shapes.push(Shape { lines: broken(&label), is_sink: true, inputs: vec![(sink.node, "")], column: last, at: (0, 0) });
    }
    let mut x = PADDING;
    for column in 0..=last {
        let mut members: Vec<usize> = (0..shapes.len()).filter(|i| shapes[*i].column == column).collect();
        members.sort_by_key(|i| (height_of_inputs(&shapes, *i), *i));
        let mut y = PADDING;
        let mut widest = 0;
        for member in members {
            // As high as its inputs, unless something stands there.
            let wanted = height_of_inputs(&shapes, member).unwrap_or(0);
            y = y.max(wanted.saturating_sub(shapes[member].height() / 2));
            shapes[member].at = (x, y);
            y += shapes[member].height() + ROW_GAP;
            widest = widest.max(shapes[member].width());
        }
        x += widest + COLUMN_GAP;
    }
    shapes
}

/// The mean height of a box's inputs, if it has any.
fn height_of_inputs(shapes: &[Shape], member: usize) -> Option<usize> {
    let inputs = &shapes[member].inputs;
    inputs.iter().map(|(input, _)| shapes[*input].at.1 + shapes[*input].height() / 2).sum::<usize>().checked_div(inputs.len())
}

/// A label's lines, broken at blanks.
fn broken(label: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in label.lines() {
        let mut current = String::new();
        for word in line.split(' ') {
            let joined = if current.is_empty() { 0 } else { current.chars().count() + 1 };
            if joined + word.chars().count() > LINE_CHARS_MAX && !current.is_empty() {
                lines.push(std::mem::take(&mut current));
                current.push_str("  ");
            } else if !current.is_empty() {
                current.push(' ');
            }
            let room = LINE_CHARS_MAX.saturating_sub(current.chars().count()).max(1);
            if word.chars().count() > room {
                current.extend(word.chars().take(room));
                current.push('…');
            } else {
                current.push_str(word);
            }
        }
        lines.push(current);
    }
    if lines.len() > LINES_MAX {
        lines.truncate(LINES_MAX - 1);
        lines.push("…".to_owned());
    }
    lines
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // Control characters are no XML.
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::Stage;

    fn graph() -> Graph {
        let text = "CREATE TABLE t (a BIGINT, b TEXT) WITH (connector = 'single_file', path = 't', type = 'source');
            CREATE TEMPORARY TABLE l (k BIGINT PRIMARY KEY, v TEXT) WITH (connector = 'single_file', path = 'l', type = 'lookup');
            SELECT b, count(*) FROM t JOIN l ON a = k WHERE a < 3 AND b > '&' GROUP BY b;
            SELECT x.b FROM t x JOIN t y ON x.a = y.a;";
        Stage::plan(text, &[]).unwrap_or_else(|error| panic!("{error}")).graph
    }

    #[test]
    fn boxes_stand_behind_their_inputs_and_apart() {
        let shapes = placed(&graph());
        for shape in &shapes {
            for (input, _) in &shape.inputs {
                assert!(shapes[*input].at.0 + shapes[*input].width() < shape.at.0);
            }
        }
        for (i, a) in shapes.iter().enumerate() {
            for b in &shapes[i + 1..] {
                let apart = a.at.0 + a.width() < b.at.0
                    || b.at.0 + b.width() < a.at.0
                    || a.at.1 + a.height() < b.at.1
                    || b.at.1 + b.height() < a.at.1;
                assert!(apart, "{:?} and {:?}", a.lines, b.lines);
            }
        }
    }

    #[test]
    fn it_is_a_document() {
        let svg = to_svg(&graph());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<rect ").count(), placed(&graph()).len() + 1);
        assert!(svg.contains("&lt;") && svg.contains("&amp;") && svg.contains(">lookup<") && svg.contains(">exchange<"), "{svg}");
        let text = svg.replace("&lt;", "").replace("&gt;", "").replace("&amp;", "").replace("&quot;", "");
        assert!(!text.contains('&'), "every other character is plain");
    }
}
