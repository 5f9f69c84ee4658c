//! Object stores by URL: local disk, S3 and what speaks its protocol, Google Cloud Storage, Azure.

mod error;
mod local;
mod upload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

pub use self::error::{chain, lasting};
pub use self::local::{DurableLocal, local_disk};
use crate::SinkError;

/// How long nobody has written to a half-written file of local disk before it counts as left behind.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The address of a folder: a URL, or a path of this machine, which is made absolute.
///
/// # Errors
/// [`SinkError::Refused`] if it is neither.
pub fn folder_url(address: &str) -> Result<Url, SinkError> {
    let refused = |reason: String| SinkError::refused(format!("address {address}"), reason);
    if address.contains("://") {
        let mut url = Url::parse(address).map_err(|e| refused(format!("{e}; write it like s3://bucket/folder")))?;
        if url.scheme() == "file" {
            url.to_file_path().map_err(|()| refused("write it like file:///folder".to_owned()))?;
        } else if url.host_str().is_none_or(str::is_empty) {
            return Err(refused("it names no bucket; write it like s3://bucket/folder".to_owned()));
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        return Ok(url);
    }
    let path = std::path::absolute(address).map_err(|e| refused(format!("{e}; give a folder or a URL")))?;
    Url::from_directory_path(path).map_err(|()| refused("it is not a path".to_owned()))
}

/// Makes the folder of a `file` URL, and those above it.
///
/// # Errors
/// [`SinkError::Unavailable`] if the disk is full; else [`SinkError::Refused`].
pub fn make_folder(url: &Url) -> Result<(), SinkError> {
    let path = local_path(url)?;
    std::fs::create_dir_all(&path).map_err(|e| {
        let what = format!("folder {}", path.display());
        match e.kind() {
            // A missing right will not come back by itself.
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => SinkError::unavailable(what, e),
            _ => SinkError::refused(what, format!("{e}; give one that can be written to")),
        }
    })
}

fn local_path(url: &Url) -> Result<PathBuf, SinkError> {
    url.to_file_path().map_err(|()| SinkError::refused(format!("address {url}"), "write it like file:///folder"))
}

/// Removes what killed lives left half written in and below a folder of local disk: listings do not show it, so neither vacuum nor a
/// garbage collection finds it. Other stores leave nothing. What cannot be removed stays, with a warning.
pub async fn remove_stale(folder: &Url) {
    if folder.scheme() != "file" {
        return;
    }
    let Ok(path) = folder.to_file_path() else { return };
    match tokio::task::spawn_blocking(move || local::remove_stale(&path, STALE)).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(%folder, files, "removed half-written files of killed lives"),
        Err(error) => tracing::warn!(%folder, %error, "half-written files of killed lives were not looked for"),
    }
}

/// The store of `url`, its "/" being the root of the bucket or disk.
///
/// `options` are the store's own, by the names that object_store gives them (`aws_region`, `aws_endpoint`,
/// `google_service_account`, `azure_storage_account_key` …). What they leave out is taken from the environment, under the same
/// names in capitals. An endpoint that is given as `http://…` is spoken to without TLS.
///
/// # Errors
/// [`SinkError::Refused`] if the scheme is unknown, or an option is unknown or wrong.
pub fn open(url: &Url, options: &BTreeMap<String, String>) -> Result<Arc<dyn ObjectStore>, SinkError> {
    let what = || format!("store {url}");
    let kind = match ObjectStoreScheme::parse(url).map(|(kind, _)| kind) {
        Ok(ObjectStoreScheme::Local) => return Ok(Arc::new(DurableLocal::new())),
        Ok(kind) => kind,
        Err(_) => return Err(unknown_scheme(url)),
    };
    let (prefix, is_known): (_, fn(&str) -> bool) = match kind {
        ObjectStoreScheme::AmazonS3 => ("AWS_", |key| key.parse::<AmazonS3ConfigKey>().is_ok()),
        ObjectStoreScheme::GoogleCloudStorage => ("GOOGLE_", |key| key.parse::<GoogleConfigKey>().is_ok()),
        ObjectStoreScheme::MicrosoftAzure => ("AZURE_", |key| key.parse::<AzureConfigKey>().is_ok()),
        _ => return Err(unknown_scheme(url)),
    };
    if let Some(unknown) = options.keys().find(|key| !is_known(&key.to_lowercase())) {
        return Err(SinkError::refused(what(), format!("it has no option \"{unknown}\"")));
    }
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with(prefix));
    let mut all: Vec<(String, String)> = environment.chain(options.clone()).map(|(name, value)| (name.to_lowercase(), value)).collect();
    if all.iter().any(|(_, value)| value.starts_with("http://")) {
        all.insert(0, ("allow_http".to_owned(), "true".to_owned()));
    }
    let (store, _path) = object_store::parse_url_opts(url, all).map_err(|e| SinkError::refused(what(), e))?;
    Ok(store.into())
}

fn unknown_scheme(url: &Url) -> SinkError {
    SinkError::refused(format!("store {url}"), format!("{} is none of file, s3, gs, az, abfss", url.scheme()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(address: &str, expected: Expect) {
        let url = folder_url(address).and_then(|url| open(&url, &BTreeMap::new()).map(|_| url));
        expected.assert_eq(&url.map_or_else(|e| e.to_string(), |url| url.to_string()));
    }

    #[test]
    fn addresses() {
        check("/var/lib/a b", expect!["file:///var/lib/a%20b/"]);
        check("file:///var/lib", expect!["file:///var/lib/"]);
        check("s3://bucket/tables", expect!["s3://bucket/tables/"]);
        check("s3://", expect!["address s3://: it names no bucket; write it like s3://bucket/folder"]);
        check("ftp://host/folder", expect!["store ftp://host/folder/: ftp is none of file, s3, gs, az, abfss"]);
        check("", expect!["address : cannot make an empty path absolute; give a folder or a URL"]);
    }

    #[test]
    fn a_relative_path_is_of_the_working_folder() {
        let here = std::env::current_dir().unwrap().join("tables/");
        assert_eq!(folder_url("tables").unwrap().to_file_path().unwrap(), here);
    }

    #[test]
    fn an_unknown_option_is_refused() {
        let url = folder_url("s3://bucket").unwrap();
        let options = |key: &str| BTreeMap::from([(key.to_owned(), "http://127.0.0.1:9000".to_owned())]);
        assert!(open(&url, &options("aws_endpoint")).is_ok());
        let error = open(&url, &options("aws_endpiont")).unwrap_err();
        expect![[r#"store s3://bucket/: it has no option "aws_endpiont""#]].assert_eq(&error.to_string());
    }
}
