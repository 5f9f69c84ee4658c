//! Orders for the benches: as many as asked for, the same on every run.

use arrow::array::RecordBatch;
use orderflow_operators::epoch::{Epoch, EpochInfo, Micros, NEVER};
use orderflow_operators::keys::hash;

use crate::test_orders::{Order, batch};

/// Event time between two orders; microseconds.
const STEP: Micros = 1_000;

/// An endless run of orders, an epoch at a time: one in 50 repeats an id, one in 50 is up to ten minutes late.
pub struct Orders {
    next: u64,
    epoch: u64,
    customers: u64,
    watermark: Micros,
}

impl Orders {
    /// Of so many customers; a tenth of them has half the orders.
    pub fn new(customers: u64) -> Self {
        Orders { next: 0, epoch: 0, customers, watermark: NEVER }
    }

    fn order(&self, n: u64) -> Order {
        let draw = |what: &str, of: u64| hash(format!("{what}{n}").as_bytes()) % of;
        let repeated = draw("repeated", 50) == 0 && n > 0;
        if repeated {
            return Order { event_time: n as i64 * STEP, ..self.order(n - 1 - draw("which", n)) };
        }
        let customer = if draw("hot", 2) == 0 { draw("customer", self.customers / 10 + 1) } else { draw("customer", self.customers) };
        let late = if draw("late", 50) == 0 { draw("lateness", 600_000_000) as i64 } else { 0 };
        Order {
            order_id: format!("o-{n:012}"),
            customer: format!("c-{customer}"),
            card: Some(format!("{:016x}", hash(&(customer * 2 + draw("card", 2)).to_le_bytes()))),
            device: (draw("device", 10) > 0).then(|| format!("d-{}", customer * 2 + draw("which device", 2))),
            ip: Some(format!("10.{}.{}.{}", customer % 251, customer % 241, draw("ip", 4))),
            countries: [Some("US".into()), Some(if draw("abroad", 20) == 0 { "CA" } else { "US" }.into())],
            lines: (0..1 + draw("lines", 3)).map(|line| (format!("SKU-{}", draw("sku", 100_000) + line), 1, 1999)).collect(),
            event_time: n as i64 * STEP - late,
            amount: 1999,
            ..Order::default()
        }
    }

    /// The next epoch.
    pub fn epoch(&mut self, rows: usize) -> (EpochInfo, RecordBatch) {
        let orders: Vec<_> = (self.next..self.next + rows as u64).map(|n| self.order(n)).collect();
        self.next += rows as u64;
        self.epoch += 1;
        let watermark_before = self.watermark;
        self.watermark = self.next as i64 * STEP - 5_000_000;
        (
            EpochInfo { epoch: Epoch(self.epoch), sealed_at: 0, watermark_before, watermark: self.watermark, checkpoint: false },
            batch(&orders),
        )
    }
}
