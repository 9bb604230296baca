//! The parent's side: starts children, watches their progress, and names the case that one died or hung in.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A child that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(30);
/// Failures told before giving up.
const MAX_FAILURES: usize = 10;

/// Runs children until `budget` is spent. Each gets its kind as its argument and, in the environment, the seed and the
/// number of its first case; it prints `case N` before each case, and `tally name=count…` at its end.
pub struct Parent<'a> {
    /// The program that is the child.
    pub program: &'a Path,
    /// What the child is to do: its argument.
    pub kind: &'a str,
    /// The seed.
    pub seed: u64,
    /// Time for everything.
    pub budget: Duration,
    /// Cases at most.
    pub limit: u64,
}

/// What all children did.
#[derive(Default)]
pub struct Report {
    /// Cases that ended as they should.
    pub cases: u64,
    /// The children's tallies added up.
    pub tally: BTreeMap<String, u64>,
    /// One text for each case that did not.
    pub failures: Vec<String>,
}

impl Parent<'_> {
    /// Runs them.
    pub fn run(&self) -> std::io::Result<Report> {
        let end = Instant::now() + self.budget;
        let mut report = Report::default();
        let mut first = 0;
        while Instant::now() < end && first < self.limit && report.failures.len() < MAX_FAILURES {
            first = self.child(first, end, &mut report)?;
        }
        Ok(report)
    }

    /// Runs one child from case `first`; the next case to run.
    fn child(&self, first: u64, end: Instant, report: &mut Report) -> std::io::Result<u64> {
        let seconds = end.saturating_duration_since(Instant::now()).as_secs_f64();
        let mut child = Command::new(self.program)
            .arg(self.kind)
            .env("BULKHEAD_HOSTILE_SEED", self.seed.to_string())
            .env("BULKHEAD_HOSTILE_CASE", first.to_string())
            .env("BULKHEAD_HOSTILE_CHILD_SECONDS", seconds.to_string())
            .env("RUST_BACKTRACE", "0")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = lines(&mut child);
        let errors = errors(&mut child);
        let mut at = first;
        let hung = loop {
            match lines.recv_timeout(SILENCE) {
                Ok(line) => {
                    if let Some(n) = line.strip_prefix("case ").and_then(|n| n.parse().ok()) {
                        at = n;
                    } else if let Some(tally) = line.strip_prefix("tally ") {
                        add(&mut report.tally, tally);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break false,
                Err(RecvTimeoutError::Timeout) => break true,
            }
        };
        if hung {
            child.kill()?;
        }
        let status = child.wait()?;
        report.cases += at - first;
        if status.success() {
            return Ok(at);
        }
        let how = if hung { format!("nothing for {SILENCE:?}") } else { status.to_string() };
        let errors = errors.recv().unwrap_or_default();
        report.failures.push(format!(
            "case {at}: {how}\n{}\nagain: BULKHEAD_HOSTILE_SEED={} BULKHEAD_HOSTILE_CASE={at} BULKHEAD_HOSTILE_CHILD_SECONDS=0 \
             cargo run -p tests --bin hostile_child -- {}\n",
            errors.trim(),
            self.seed,
            self.kind
        ));
        Ok(at + 1)
    }
}

fn add(all: &mut BTreeMap<String, u64>, tally: &str) {
    for (name, count) in tally.split(' ').filter_map(|word| word.split_once('=')) {
        *all.entry(name.into()).or_default() += count.parse::<u64>().unwrap_or(0);
    }
}

fn lines(child: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    if let Some(out) = child.stdout.take() {
        thread::spawn(move || BufReader::new(out).lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    }
    receive
}

fn errors(child: &mut Child) -> Receiver<String> {
    let (send, receive) = channel();
    if let Some(mut out) = child.stderr.take() {
        thread::spawn(move || {
            let mut text = String::new();
            let _ = out.read_to_string(&mut text);
            send.send(text)
        });
    }
    receive
}
