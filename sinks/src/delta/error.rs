//! Which errors of delta-rs and of stores may pass, and which will not.

use deltalake::DeltaTableError;

use crate::SinkError;
use crate::store::{chain, lasting};

/// What an error is about.
pub(super) fn what(stream: &str) -> String {
    format!("Delta table {stream}")
}

/// Stores and networks may recover; what the table is, or who we are, does not change by waiting.
pub(super) fn classify(stream: &str, error: impl Into<DeltaTableError>) -> SinkError {
    let error = error.into();
    let damaged = "the table's log is damaged or of another kind: restore it, or give sinks.delta.url another folder";
    let advice = match &error {
        DeltaTableError::InvalidTableLocation(_) => Some("give sinks.delta.url another address"),
        DeltaTableError::InvalidJsonLog { .. } | DeltaTableError::SchemaMismatch { .. } | DeltaTableError::MetadataError(_) => {
            Some(damaged)
        }
        other => lasting(other),
    };
    let text = chain(&error);
    match advice {
        Some(advice) => SinkError::refused(what(stream), format!("{text}; {advice}")),
        None => SinkError::unavailable(what(stream), text),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use super::*;

    fn check(error: impl Into<DeltaTableError>, refused: bool) {
        let error = classify("order_lines", error);
        assert_eq!(matches!(error, SinkError::Refused { .. }), refused, "{error}");
    }

    fn disk(kind: ErrorKind) -> object_store::Error {
        object_store::Error::Generic { store: "local disk", source: io::Error::from(kind).into() }
    }

    #[test]
    fn what_lasts_is_refused() {
        check(disk(ErrorKind::PermissionDenied), true);
        check(disk(ErrorKind::ReadOnlyFilesystem), true);
        check(object_store::Error::Unauthenticated { path: "x".into(), source: "401".into() }, true);
        check(DeltaTableError::Kernel { source: deltalake::kernel::Error::ObjectStore(disk(ErrorKind::PermissionDenied)) }, true);
        check(object_store::Error::Generic { store: "S3", source: "404: <Code>NoSuchBucket</Code>".into() }, true);
        check(disk(ErrorKind::StorageFull), false);
        check(object_store::Error::Generic { store: "S3", source: "503 Slow Down".into() }, false);
        check(DeltaTableError::VersionAlreadyExists(3), false);
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = classify("order_lines", disk(ErrorKind::StorageFull));
        let expected = "Delta table order_lines: Failed to read delta log object: Generic local disk error: no storage space";
        assert_eq!(error.to_string(), expected);
    }
}
