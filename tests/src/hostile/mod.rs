//! Hostile guests: random but reachable states of a processor, page tables that lead nowhere, code that is noise. What
//! must hold: the process neither dies nor hangs nor grows, and a stop is honoured at once; and where nothing depends
//! on time, both engines end in the same state.
//!
//! A case follows from the seed and its number alone. Cases run in a child process, since the translator's faults are the
//! host's: one that kills the child is named by the parent, with the command that runs it again.

mod attacks;
mod boot;
mod code;
mod compare;
mod machine;
mod operator;
pub mod parent;
mod run;
mod tables;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

pub use attacks::ATTACKS;
use code::{Taste, Writer};
use operator::Operator;
pub use run::memory_is_bounded;
use run::{Around, End, Outcome, run};

/// The translator first: it has most to lose.
const ENGINES: [&str; 2] = ["translate", "interp"];
/// Time for a machine on one engine.
const TIME: Duration = Duration::from_millis(12);
/// Time for a machine whose end is to be compared.
const LONG_TIME: Duration = Duration::from_millis(40);

/// A number from the environment.
pub fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// A share of `BULKHEAD_HOSTILE_SECONDS`, which is 15 by default.
pub fn seconds(share: f64) -> Duration {
    Duration::from_secs_f64(setting("BULKHEAD_HOSTILE_SECONDS", 15.0) * share)
}

/// What cases of one process did.
#[derive(Default)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, what: String) {
        *self.0.entry(what).or_default() += 1;
    }

    /// One `name=count` a word, spaces in names replaced.
    pub fn line(&self) -> String {
        self.0.iter().map(|(name, count)| format!("{name}={count}")).collect::<Vec<_>>().join(" ")
    }
}

/// Runs cases.
pub struct Fuzzer {
    seed: u64,
    operator: Arc<Operator>,
    /// What they did.
    pub tally: Tally,
}

impl Fuzzer {
    /// A fuzzer whose cases follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, operator: Operator::start(), tally: Tally::default() }
    }

    /// Runs attack `number` of [`ATTACKS`] for `time` on the translator and a fifth of that on the interpreter.
    pub fn attack(&mut self, number: usize, time: Duration) -> Result<(), String> {
        let (name, build) = ATTACKS[number];
        let machine = build().map_err(|e| e.to_string())?;
        for (engine, time) in ENGINES.into_iter().zip([time, time / 5]) {
            let outcome =
                run(&machine, engine, &self.operator, time, Around::Board).map_err(|e| format!("{name}: {e}"))?;
            if outcome.end != End::Time {
                return Err(format!(
                    "{name} ended on {engine}: {:?} {} {:x?}",
                    outcome.end, outcome.why, outcome.state
                ));
            }
        }
        Ok(())
    }

    /// Loads the files of case `number`; see `boot`.
    pub fn files(&mut self, number: u64) -> Result<(), String> {
        let what = boot::case(self.seed, number)?;
        self.tally.count(what.into());
        Ok(())
    }

    /// Runs case `number`. An error says what did not hold.
    pub fn case(&mut self, number: u64) -> Result<(), String> {
        let seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
        let mut rng = SmallRng::seed_from_u64(seed);
        let taste = if number.is_multiple_of(3) { Taste::Exact } else { Taste::Wild };
        let mut writer = Writer::new(seed, taste);
        let machine = machine::machine(&mut rng, &mut writer, taste);
        let told = |e: String| format!("{e}\n{}", machine.what);
        let exact = taste == Taste::Exact;
        let time = if exact { LONG_TIME } else { TIME };
        let around = if exact { Around::Nothing } else { Around::Noise };
        let mut outcomes: Vec<Outcome> = Vec::new();
        for engine in ENGINES {
            let outcome = run(&machine, engine, &self.operator, time, around).map_err(told)?;
            self.tally.count(format!("{engine}:{:?}", outcome.end));
            outcomes.push(outcome);
        }
        if !exact || outcomes.iter().any(|o| o.end == End::Time) {
            return Ok(());
        }
        match compare::differences(&machine.image, &outcomes[0], &outcomes[1]) {
            None => self.tally.count("not-compared".into()),
            Some(different) if different.is_empty() => self.tally.count("compared".into()),
            Some(different) => {
                let ends = outcomes.iter().map(|o| format!("{:?} {}", o.end, o.why)).collect::<Vec<_>>().join(", ");
                return Err(told(format!("ended {ends}\n{}", different.join("\n"))));
            }
        }
        Ok(())
    }
}
