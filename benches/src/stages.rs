//! What SQL stages cost in the running job: pairs of replays, without them and with them.

use orderflow_fixtures::generate::GenerateSettings;

use super::{Outcome, Replay, finish, generate, spread, start};

/// Prints the difference in CPU time of each pair, an order. No sink is on: a stage's own rows are few.
pub fn stages(orders: u64, pairs: usize, workers: usize, stages: &[String], settings: &[String]) -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    let input = folder.path().join("fixture");
    generate(&GenerateSettings { orders, ..GenerateSettings::default() }, &input)?;
    let quoted: Vec<String> = stages.iter().map(|file| format!("{file:?}")).collect();
    let with = format!("stages.files=[{}]", quoted.join(", "));
    let out = folder.path().join("out");
    let (mut plain, mut more) = (Vec::new(), Vec::new());
    println!("| pair | without, CPU us an order | with | difference |\n| --- | --- | --- | --- |");
    for pair in 0..pairs {
        let mut cpu = [0.0; 2];
        // Who goes first changes, so that neither has the warmer machine.
        for with_stages in [pair % 2 == 0, pair % 2 == 1] {
            let mut settings = settings.to_vec();
            settings.extend([format!("job.workers={workers}"), "sinks.delta.enabled=false".to_owned()]);
            if with_stages {
                settings.push(with.clone());
            }
            let measured = finish(start(Replay::new(&input, &out, &settings))?)?;
            cpu[usize::from(with_stages)] = measured.cpu_seconds * 1e6 / measured.orders;
            std::fs::remove_dir_all(&out)?;
        }
        let [without, with] = cpu;
        println!("| {} | {without:.2} | {with:.2} | {:.2} |", pair + 1, with - without);
        plain.push(without);
        more.push(with - without);
    }
    let [median, least, most] = spread(more);
    println!("\n{}: {median:.2} us of CPU an order ({least:.2} to {most:.2}), on {:.2} without", stages.join(", "), spread(plain)[0]);
    Ok(())
}
