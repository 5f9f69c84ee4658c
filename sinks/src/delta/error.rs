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
    match advice {
        Some(advice) => SinkError::refused(what(stream), format!("{}; {advice}", chain(&error))),
        None => SinkError::unavailable(what(stream), chain(&error)),
    }
}

/// What to do about a cause that lasts, if there is one below.
pub(crate) fn lasting(error: &(dyn Error + 'static)) -> Option<&'static str> {
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
