//! Which errors of delta-rs and of stores may pass, and which will not.

use std::error::Error;

use deltalake::DeltaTableError;

use crate::SinkError;

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
    match advice.or_else(|| answer_advice(&text)) {
        Some(advice) => SinkError::refused(what(stream), format!("{text}; {advice}")),
        None => SinkError::unavailable(what(stream), text),
    }
}

/// What to do about a cause that lasts, if there is one below.
fn lasting(error: &(dyn Error + 'static)) -> Option<&'static str> {
    use object_store::Error as Store;
    use std::io::ErrorKind;
    let mut next = Some(error);
    while let Some(error) = next {
        match error.downcast_ref::<Store>() {
            Some(Store::PermissionDenied { .. }) => return Some("give the job the right to read and write there"),
            Some(Store::Unauthenticated { .. }) => return Some("give the store's right keys"),
            Some(Store::NotSupported { .. } | Store::NotImplemented { .. }) => {
                return Some("the store lacks what a table needs: use one that can create an object only if it is absent");
            }
            Some(Store::UnknownConfigurationKey { .. } | Store::InvalidPath { .. }) => return Some("correct the settings of the store"),
            _ => {}
        }
        match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => return Some("give the job the right to write there"),
            Some(ErrorKind::NotADirectory) => return Some("give a folder"),
            _ => {}
        }
        next = error.source();
    }
    None
}

/// object_store keeps the code of a store's answer in the text only.
fn answer_advice(text: &str) -> Option<&'static str> {
    const ANSWERS: [(&str, &str); 5] = [
        ("NoSuchBucket", "make the bucket, or give another"),
        ("ContainerNotFound", "make the container, or give another"),
        ("InvalidAccessKeyId", "give the store's right keys"),
        ("SignatureDoesNotMatch", "give the store's right keys"),
        ("403 Forbidden", "give the job the right to read, list and write there"),
    ];
    ANSWERS.into_iter().find(|(code, _)| text.contains(code)).map(|(_, advice)| advice)
}

/// The error with its causes, none said twice.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    text
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
