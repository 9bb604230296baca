//! The machine's log: what the broker says, and what confined processes say through it.
//!
//! An event goes two ways: to standard error, as text for people or as JSON lines, and into a ring that `bulkhead logs`
//! reads. Neither makes the broker wait: [`Drain`] writes on a thread of its own and drops what nobody reads, with a count,
//! and the ring forgets its oldest.

mod drain;
mod ring;

use std::fmt::{self, Write};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::prelude::*;

use drain::Drain;
pub use ring::{BROKER, Entry, Ring};

/// Longest text of an event in bytes; what is longer is cut.
const MAX_TEXT: usize = 4096;
/// How long the end waits for somebody who reads standard error.
const LAST: Duration = Duration::from_secs(1);

static RING: Mutex<Ring> = Mutex::new(Ring::new());
static DRAIN: OnceLock<Drain> = OnceLock::new();

/// The level that was asked for: `BULKHEAD_LOG`, else `info`. Confined processes send no more than this.
pub fn filter_text() -> String {
    std::env::var("BULKHEAD_LOG").ok().filter(|text| text.parse::<EnvFilter>().is_ok()).unwrap_or("info".into())
}

/// Starts logging. `BULKHEAD_LOG` sets the level (`info` by default), as tracing-subscriber's filters do.
pub fn start(json: bool) {
    let notice = move |dropped: u64| {
        let text = format!("{dropped} log lines were dropped: nobody read standard error");
        Entry::now("WARN", BROKER, text).line(json)
    };
    DRAIN.get_or_init(|| Drain::start(std::io::stderr(), notice));
    let log = Log { json };
    // A second start (in a test) keeps the first.
    let _ = tracing_subscriber::registry().with(EnvFilter::new(filter_text())).with(log).try_init();
}

/// The machine's recent events.
pub fn ring() -> MutexGuard<'static, Ring> {
    RING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes lines to standard error, behind all events before.
pub fn print(text: &str) {
    match DRAIN.get() {
        Some(drain) => drain.push(text),
        None => eprint!("{text}"),
    }
}

/// What was logged is written, if anybody reads it.
pub fn finish() {
    if let Some(drain) = DRAIN.get() {
        drain.flush(LAST);
    }
}

/// The tracing layer.
struct Log {
    json: bool,
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let who = if said.who.is_empty() { BROKER } else { &said.who };
        let entry = Entry::now(event.metadata().level().as_str(), who, said.text);
        print(&entry.line(self.json));
        ring().push(entry);
    }
}

/// An event's message, its other fields behind it, and who said it.
#[derive(Default)]
struct Said {
    who: String,
    text: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let before = if self.text.is_empty() { "" } else { " " };
        // Writing into memory does not fail.
        let _ = match field.name() {
            "who" => write!(self.who, "{value:?}"),
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.text, "{before}{name}={value:?}"),
        };
        if self.text.len() > MAX_TEXT {
            self.text.truncate((0..=MAX_TEXT).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0));
        }
    }
}
