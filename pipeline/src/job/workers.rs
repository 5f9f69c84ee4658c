//! The workers' threads: connected to those of other processes, started, and waited for.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use orderflow_operators::dataflow::worker_config;
use orderflow_operators::epoch::Epoch;

use super::{JobError, LEAVE, POLL};
use crate::failure::Failure;
use crate::job_plan::Cluster;
use crate::meeting::{Hello, meet};
use crate::panics::ConnectionWatch;
use crate::stages::JobStream;
use crate::worker::{Head, HeadSummary, WorkerPlan};

/// How long processes of a job wait for each other at the start.
const MEET: Duration = Duration::from_secs(60);

/// What timely's workers are made of, and what lives as long as they do.
type Workers = (Vec<timely::communication::AllocatorBuilder>, Box<dyn std::any::Any + Send>);

/// Workers that are connected to those of the job's other processes, and what process 0 says of where stages begin.
fn connected(
    cluster: &Cluster,
    job: &str,
    workers: usize,
    plan: &WorkerPlan,
    failure: &Failure,
) -> Result<(Workers, BTreeMap<String, Epoch>), JobError> {
    use timely::communication::allocator::ProcessBuilder;
    use timely::communication::allocator::zero_copy::initialize::initialize_networking_from_sockets;
    let Cluster { hosts, process } = cluster;
    let release = env!("CARGO_PKG_VERSION").to_owned();
    let stages = &plan.shared.settings.stages;
    let stream = |stream: &JobStream| format!("{} of [{}]", stream.stream.name(), stages.writers(stream.stream.name()).join(", "));
    let hello = Hello {
        job: job.to_owned(),
        release,
        hosts: hosts.clone(),
        workers,
        process: *process,
        settings: plan.meaning.clone(),
        streams: stages.streams.iter().map(stream).collect(),
        stage_begins: plan.shared.stage_begins.clone(),
    };
    let is_over = || plan.stop.requested() || failure.is_set();
    let met = meet(cluster, &hello, MEET, &is_over).map_err(|error| match failure.message() {
        Some(message) => JobError::of(failure, message),
        None => JobError::Start(error.to_string()),
    })?;
    let stage_begins = met[0].as_ref().map_or(hello.stage_begins, |(_, first)| first.stage_begins.clone());
    let sockets = met.into_iter().map(|met| met.map(|(stream, _)| stream)).collect();
    let hooks = timely::communication::Hooks::default();
    let threads = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), hooks.spill.clone());
    let (builders, guard) = initialize_networking_from_sockets(threads, sockets, *process, workers, hooks)
        .map_err(|error| JobError::Start(error.to_string()))?;
    let builders = builders.into_iter().map(timely::communication::AllocatorBuilder::Tcp).collect();
    Ok(((builders, Box::new(guard)), stage_begins))
}

/// Runs the workers in threads of their own, so that one that hangs after a failure cannot keep the job from ending.
pub(super) fn run(
    mut plan: WorkerPlan,
    head: Option<Head>,
    workers: usize,
    job: &str,
    cluster: Option<Cluster>,
    failure: &Failure,
) -> Result<Option<HeadSummary>, JobError> {
    let _watch = cluster.is_some().then(|| ConnectionWatch::start(failure));
    let (builders, guard) = match cluster {
        Some(cluster) => {
            let (workers, stage_begins) = connected(&cluster, job, workers, &plan, failure)?;
            plan.shared.stage_begins = stage_begins;
            workers
        }
        None if workers == 1 => timely::CommunicationConfig::Thread.try_build().map_err(JobError::Start)?,
        None => timely::CommunicationConfig::Process(workers).try_build().map_err(JobError::Start)?,
    };
    let (sender, results) = mpsc::channel();
    let head = Mutex::new(head);
    let failed = failure.clone();
    let body = move |worker: &mut timely::worker::Worker| {
        let head = if worker.index() == 0 { head.lock().unwrap_or_else(PoisonError::into_inner).take() } else { None };
        crate::panics::watch_worker(worker.index(), &plan.shared.failure);
        let run = std::panic::catch_unwind(AssertUnwindSafe(|| crate::worker::run(worker, &plan, head)));
        run.unwrap_or_else(|_reported| {
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
            None
        })
    };
    std::thread::Builder::new()
        .name("workers".into())
        .spawn(move || {
            let result = timely::execute::execute_from(builders, guard, worker_config(), body).map(|guards| guards.join());
            let _ = sender.send(result);
        })
        .map_err(|e| JobError::Start(e.to_string()))?;

    let mut give_up: Option<Instant> = None;
    loop {
        match results.recv_timeout(POLL) {
            Ok(Ok(workers)) => {
                let mut summary = None;
                for worker in workers {
                    match worker {
                        Ok(head) => summary = summary.or(head),
                        Err(error) => failed.report(format!("a worker failed: {error}")),
                    }
                }
                return match failed.message() {
                    Some(message) => Err(JobError::of(&failed, message)),
                    None => Ok(summary),
                };
            }
            Ok(Err(error)) => return Err(JobError::Start(error)),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let message = failed.message().unwrap_or("the workers' thread ended without a result");
                return Err(JobError::of(&failed, message));
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
        }
        if let Some(message) = failed.message()
            && *give_up.get_or_insert_with(|| Instant::now() + LEAVE) < Instant::now()
        {
            return Err(JobError::of(&failed, message));
        }
    }
}
