//! Which errors of stores may pass, and which will not.

use std::error::Error;

/// What to do about a cause that lasts, if there is one below: a right, a key, a bucket. Anything else may pass.
pub fn lasting(error: &(dyn Error + 'static)) -> Option<&'static str> {
    use object_store::Error as Store;
    use std::io::ErrorKind;
    let mut next = Some(error);
    while let Some(cause) = next {
        match cause.downcast_ref::<Store>() {
            Some(Store::PermissionDenied { .. }) => return Some("give the job the right to read and write there"),
            Some(Store::Unauthenticated { .. }) => return Some("give the store's right keys"),
            Some(Store::NotSupported { .. } | Store::NotImplemented { .. }) => {
                return Some("the store lacks what exactly-once needs: use one that can create an object only if it is absent");
            }
            Some(Store::UnknownConfigurationKey { .. } | Store::InvalidPath { .. }) => return Some("correct the settings of the store"),
            _ => {}
        }
        match cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => return Some("give the job the right to write there"),
            Some(ErrorKind::NotADirectory) => return Some("give a folder"),
            _ => {}
        }
        next = cause.source();
    }
    answer_advice(&chain(error))
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
pub fn chain(error: &(dyn Error + 'static)) -> String {
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
