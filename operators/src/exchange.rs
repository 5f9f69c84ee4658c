//! Splitting batches between workers.

use arrow::array::{Array, RecordBatch, StringArray};
use timely::communication::Push;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pact::DistributorPact;
use timely::dataflow::channels::pushers::exchange::Distributor;

use crate::batch::Batch;
use crate::columns::{text, u32s};
use crate::keys::{group_owner, hash, key_group};

/// Names a worker for each row of a batch.
pub type Route = Box<dyn FnMut(&RecordBatch, &mut Vec<u32>)>;

/// Sends each row to the worker that a [`Route`] names for it.
///
/// timely does not call this at all when there is one worker.
pub struct RowDistributor {
    route: Route,
    targets: Vec<u32>,
    rows: Vec<Vec<u32>>,
}

impl RowDistributor {
    /// For `peers` workers.
    pub fn new(route: Route, peers: usize) -> Self {
        RowDistributor { route, targets: Vec::new(), rows: vec![Vec::new(); peers] }
    }
}

impl Distributor<Batch> for RowDistributor {
    fn partition<T: Clone, P: Push<Message<T, Batch>>>(&mut self, container: &mut Batch, time: &T, pushers: &mut [P]) {
        let Some(batch) = std::mem::take(container).into_rows() else { return };
        self.targets.clear();
        (self.route)(&batch, &mut self.targets);
        // timely counts rows sent against rows received: none may get lost here.
        assert_eq!(self.targets.len(), batch.num_rows());

        // A batch that goes to one place needs no copy (always so for small control messages).
        if let Some(&only) = self.targets.first()
            && self.targets.iter().all(|&t| t == only)
        {
            Message::push_at(&mut Batch::from(batch), time.clone(), &mut pushers[only as usize]);
            return;
        }
        for (row, &target) in self.targets.iter().enumerate() {
            self.rows[target as usize].push(row as u32);
        }
        for (rows, pusher) in self.rows.iter_mut().zip(pushers) {
            if !rows.is_empty() {
                // A slack of a few rows for the next batch, which is likely to be of this size.
                let next = Vec::with_capacity(rows.len() + rows.len() / 8);
                let numbers = std::mem::replace(rows, next);
                Message::push_at(&mut Batch::picked(batch.clone(), numbers), time.clone(), pusher);
            }
        }
    }

    /// Nothing is held back: `partition` sends each batch's parts at once.
    fn flush<T: Clone, P: Push<Message<T, Batch>>>(&mut self, _time: &T, _pushers: &mut [P]) {}
}

fn pact(route: impl FnOnce(usize) -> Route) -> DistributorPact<impl FnOnce(usize) -> RowDistributor> {
    DistributorPact(move |peers| RowDistributor::new(route(peers), peers))
}

/// The worker that owns a key.
#[inline]
pub fn owner_of(key: &[u8], peers: usize) -> usize {
    group_owner(key_group(hash(key)), peers)
}

fn text_owners(keys: &StringArray, peers: usize, targets: &mut Vec<u32>) {
    // A null key belongs to nobody; the row still has to arrive somewhere, and is answered there.
    targets.extend((0..keys.len()).map(|row| if keys.is_null(row) { 0 } else { owner_of(keys.value(row).as_bytes(), peers) as u32 }));
}

/// Exchange by the key group of the text in `column`.
pub fn by_text(column: usize) -> DistributorPact<impl FnOnce(usize) -> RowDistributor> {
    pact(move |peers| Box::new(move |batch, targets| text_owners(text(batch, column), peers, targets)))
}

/// Exchange to the worker whose index is in `column` (uint32).
pub fn by_worker(column: usize) -> DistributorPact<impl FnOnce(usize) -> RowDistributor> {
    pact(move |_peers| Box::new(move |batch, targets| targets.extend_from_slice(u32s(batch, column))))
}

/// Exchange of everything to worker `index mod peers`.
pub fn to_worker(index: usize) -> DistributorPact<impl FnOnce(usize) -> RowDistributor> {
    pact(move |peers| Box::new(move |batch, targets| targets.resize(batch.num_rows(), (index % peers) as u32)))
}
