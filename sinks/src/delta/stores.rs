//! Makes delta-rs take the stores of [`crate::store`], for whoever in this process reads a table by its URL.
//!
//! These stores create an object only if it is absent, so that an entry of the log needs no lock and no second store.

use std::sync::{Arc, Once};

use deltalake::logstore::{
    LogStore, LogStoreFactory, ObjectStoreFactory, ObjectStoreRef, StorageConfig, default_logstore, logstore_factories,
    object_store_factories,
};
use deltalake::{DeltaResult, DeltaTableError};
use object_store::path::Path;
use url::Url;

use crate::store;

/// Schemes of stores besides local disk.
const SCHEMES: [&str; 7] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss"];

/// Registers the stores with delta-rs, once a process.
pub(super) fn register() {
    static DONE: Once = Once::new();
    DONE.call_once(|| {
        for scheme in SCHEMES {
            let key = Url::parse(&format!("{scheme}://")).expect("a scheme alone is a URL");
            object_store_factories().insert(key.clone(), Arc::new(Stores));
            logstore_factories().insert(key, Arc::new(Stores));
        }
    });
}

struct Stores;

impl ObjectStoreFactory for Stores {
    fn parse_url_opts(&self, url: &Url, config: &StorageConfig) -> DeltaResult<(ObjectStoreRef, Path)> {
        let options = config.raw.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let store = store::open(url, &options).map_err(|e| DeltaTableError::generic(e.to_string()))?;
        Ok((store, Path::from_url_path(url.path())?))
    }
}

impl LogStoreFactory for Stores {
    fn with_options(
        &self,
        prefixed_store: ObjectStoreRef,
        root_store: ObjectStoreRef,
        location: &Url,
        options: &StorageConfig,
    ) -> DeltaResult<Arc<dyn LogStore>> {
        Ok(default_logstore(prefixed_store, root_store, location, options))
    }
}
