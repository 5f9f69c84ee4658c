//! CPU time of writing decisions to a Delta table: encoding, files, commits.
//!
//! Measured is the CPU time of the whole process, not the clock: the goal is 1.5 µs for a row of `order_decisions`.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    ArrayRef, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, SchemaRef};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use orderflow_operators::epoch::Epoch;
use orderflow_operators::features::WindowSet;
use orderflow_operators::streams::Stream;
use orderflow_sinks::delta::{DeltaSettings, DeltaSink};
use orderflow_sinks::{EpochRows, Sink};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// User and system time of this process.
struct CpuTime;

fn cpu_time() -> Duration {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: getrusage fills the struct it is given.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |t: libc::timeval| Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64);
    time(usage.ru_utime) + time(usage.ru_stime)
}

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;
    fn start(&self) -> Duration {
        cpu_time()
    }
    fn end(&self, start: Duration) -> Duration {
        cpu_time() - start
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        *a + *b
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, value: &Duration) -> f64 {
        WallTime.to_f64(value)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

/// `count` decisions like those of a shop: ids all different, few currencies and countries, small counts in the windows, a
/// tenth of the optional columns null.
fn decisions(schema: &SchemaRef, epoch: u64, count: usize) -> RecordBatch {
    let mut random = ChaCha8Rng::seed_from_u64(epoch);
    let columns = schema.fields().iter().map(|field| column(field, epoch, count, &mut random)).collect();
    RecordBatch::try_new(schema.clone(), columns).expect("columns are made after the schema")
}

fn column(field: &Field, epoch: u64, count: usize, random: &mut ChaCha8Rng) -> ArrayRef {
    let rows = 0..count;
    let choice = |of: &'static [&str], random: &mut ChaCha8Rng| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..count).map(|_| of[random.random_range(0..of.len())])))
    };
    let start = epoch as i64 * count as i64;
    match (field.name().as_str(), field.data_type()) {
        ("epoch", _) => Arc::new(Int64Array::from(vec![epoch as i64; count])),
        ("split", _) => Arc::new(Int32Array::from_iter_values(rows.map(|row| (row * 4 / count) as i32))),
        ("offset", _) => Arc::new(Int64Array::from_iter_values(rows.map(|row| start + row as i64))),
        ("order_id", _) => Arc::new(StringArray::from_iter_values(rows.map(|row| format!("o-{:010}", start + row as i64)))),
        ("customer_id", _) => Arc::new(StringArray::from_iter_values(rows.map(|_| format!("c-{}", random.random_range(0..1_000_000))))),
        ("currency", _) => choice(&["USD", "USD", "USD", "EUR", "GBP", "JPY"], random),
        ("decision", _) => choice(&["accepted", "accepted", "accepted", "accepted", "rejected"], random),
        ("reason", _) => choice(&["", "", "", "", "", "out_of_stock", "fraud"], random),
        ("model", _) => Arc::new(StringArray::from(vec!["baseline/1"; count])),
        ("detail", DataType::List(item)) => {
            let mut lists = ListBuilder::new(StringBuilder::new()).with_field(item.clone());
            rows.for_each(|row| lists.append_value((row % 20 == 0).then(|| Some(format!("SKU-{}", row % 100)))));
            Arc::new(lists.finish())
        }
        (_, DataType::Utf8) => choice(&["US", "US", "GB", "DE", "FR", "JP"], random),
        (_, DataType::Timestamp(..)) => {
            let times = rows.map(|row| 1_767_607_200_000_000 + start + row as i64 * 50 + random.random_range(0..5_000) * 1_000);
            Arc::new(TimestampMicrosecondArray::from_iter_values(times).with_timezone("UTC"))
        }
        (_, DataType::Float64) => Arc::new(Float64Array::from_iter_values(rows.map(|_| random.random::<f64>() * 0.3))),
        (name, _) if name.contains("amount") || name == "total" => {
            Arc::new(Int64Array::from_iter(rows.map(|_| random.random_bool(0.9).then(|| random.random_range(500..60_000)))))
        }
        (_, _) => {
            let counts = rows.map(|_| if random.random_bool(0.7) { 1 } else { random.random_range(0..12) });
            Arc::new(Int64Array::from_iter_values(counts))
        }
    }
}

const EPOCHS: u64 = 8;
const EPOCH_ROWS: usize = 32_768;

fn delta(criterion: &mut Criterion<CpuTime>) {
    let schema = Stream::OrderDecisions.schema(&WindowSet::default());
    let epochs: Vec<RecordBatch> = (1..=EPOCHS).map(|epoch| decisions(&schema, epoch, EPOCH_ROWS)).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads can be started");
    let mut group = criterion.benchmark_group("delta/order_decisions");
    group.throughput(Throughput::Elements(EPOCHS * EPOCH_ROWS as u64)).sample_size(10);
    for compression in ["none", "snappy", "zstd(1)", "zstd(3)"] {
        let begin = || {
            let folder = tempfile::tempdir().expect("there is a folder for temporary files");
            let compression = compression.parse().expect("it is one of the known");
            let settings = DeltaSettings { url: folder.path().display().to_string(), compression, ..DeltaSettings::default() };
            let mut sink =
                DeltaSink::new("bench", Stream::OrderDecisions.name(), schema.clone(), settings).expect("a folder is an address");
            runtime.block_on(sink.recover()).expect("the folder is new");
            (folder, sink)
        };
        group.bench_function(BenchmarkId::from_parameter(compression), |bencher| {
            bencher.iter_batched(
                begin,
                |(folder, mut sink)| {
                    runtime.block_on(async {
                        for (epoch, rows) in (1..).map(Epoch).zip(&epochs) {
                            sink.write(EpochRows { epoch, rows: rows.clone() }).await.expect("rows have the table's columns");
                        }
                        sink.commit(Epoch(EPOCHS)).await.expect("the disk has room");
                    });
                    (folder, sink)
                },
                BatchSize::PerIteration,
            );
        });
        let (folder, mut sink) = begin();
        let bytes = runtime.block_on(async {
            for (epoch, rows) in (1..).map(Epoch).zip(&epochs) {
                sink.write(EpochRows { epoch, rows: rows.clone() }).await.expect("rows have the table's columns");
            }
            sink.commit(Epoch(EPOCHS)).await.expect("the disk has room");
            let files = std::fs::read_dir(folder.path().join(Stream::OrderDecisions.name())).expect("the table was made");
            files.filter_map(|file| file.ok()?.metadata().ok().filter(|m| m.is_file())).map(|m| m.len()).sum::<u64>()
        });
        println!("{compression}: {:.1} bytes a row", bytes as f64 / (EPOCHS * EPOCH_ROWS as u64) as f64);
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = delta
}
criterion_main!(benches);
