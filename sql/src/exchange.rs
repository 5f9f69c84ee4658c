//! Which worker has which rows: by the key group of some columns' values.

use orderflow_operators::exchange::{Route, RowDistributor};
use orderflow_operators::keys::{group_owner, key_group};
use timely::dataflow::channels::pact::DistributorPact;

use crate::rows::hashes;

/// Exchange by the key group of some columns' values.
pub(crate) fn by_columns(columns: Vec<usize>) -> DistributorPact<impl FnOnce(usize) -> RowDistributor> {
    DistributorPact(move |peers| {
        let route: Route = Box::new(move |batch, targets| {
            let keys: Vec<_> = columns.iter().map(|c| batch.column(*c).clone()).collect();
            let owners = hashes(&keys, batch.num_rows()).into_iter().map(|hash| group_owner(key_group(hash), peers) as u32);
            targets.extend(owners);
        });
        RowDistributor::new(route, peers)
    })
}
