//! What is wrong with a stage, and where.

use std::fmt;

/// A place in the text of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
}

/// What is wrong with a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageError {
    message: String,
    help: Option<String>,
    position: Option<Position>,
    source_line: Option<String>,
}

impl StageError {
    /// An error of the whole file, until it is told where.
    pub fn new(message: impl Into<String>) -> Self {
        StageError { message: message.into(), help: None, position: None, source_line: None }
    }

    /// With what to do instead.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// With a place, unless it has one.
    pub fn at(mut self, position: Position) -> Self {
        if self.position.is_none() && position.line > 0 {
            self.position = Some(position);
        }
        self
    }

    /// Where in the text.
    pub fn position(&self) -> Option<Position> {
        self.position
    }

    /// What, in one line.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// With the line that the place is in.
    pub(crate) fn in_text(mut self, text: &str) -> Self {
        if let Some(position) = self.position {
            self.source_line = text.lines().nth(position.line.saturating_sub(1) as usize).map(str::to_owned);
        }
        self
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Position { line, column }) = self.position {
            write!(f, "line {line}, column {column}: ")?;
        }
        f.write_str(&self.message)?;
        if let (Some(Position { line, column }), Some(text)) = (self.position, &self.source_line) {
            let number = line.to_string();
            // A line of a generated file can be very long; only what is near the place is of use.
            let from = (column as usize).saturating_sub(100);
            let shown: String = text.chars().skip(from).take(160).map(|c| if c == '\t' { ' ' } else { c }).collect();
            let caret = (column as usize).saturating_sub(1 + from);
            write!(f, "\n{number} | {shown}\n{} | {}^", " ".repeat(number.len()), " ".repeat(caret))?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StageError {}
