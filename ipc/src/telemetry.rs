//! What a confined process logs: tracing events on their way to the broker, which alone can write them anywhere.
//!
//! In the process, [`Forward`] is the tracing layer: it formats an event, and drops it if too many come or the channel is
//! full. At the broker, [`Intake`] limits again, since a process that was taken over is not bound by its own layer, and
//! strips what a terminal would obey.

use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::rate::Bucket;

/// Longest text of an event in bytes.
pub const MAX_TEXT: usize = 1024;
/// Events at once, and a second, that a process may send.
const BURST: u32 = 64;
const RATE: u32 = 20;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How grave it is.
    pub severity: Severity,
    /// What happened, with its fields.
    pub text: String,
    /// Events that were dropped before this one.
    pub lost: u32,
}

/// tracing's levels, in a form that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Severity {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Record {
    /// Refuses what no honest process sends.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.text.len() > MAX_TEXT { Err(format!("a log text of {} bytes", self.text.len())) } else { Ok(()) }
    }
}

impl From<&Level> for Severity {
    fn from(level: &Level) -> Self {
        match *level {
            Level::ERROR => Self::Error,
            Level::WARN => Self::Warn,
            Level::INFO => Self::Info,
            Level::DEBUG => Self::Debug,
            Level::TRACE => Self::Trace,
        }
    }
}

/// The tracing layer of a confined process. `send` says whether the record left.
pub struct Forward<F> {
    send: F,
    state: Mutex<(Bucket, u32)>,
}

impl<F: Fn(&Record) -> bool> Forward<F> {
    /// Forwards by `send`, which must not block and must not log.
    pub fn new(send: F) -> Self {
        Self { send, state: Mutex::new((Bucket::new(BURST, RATE, Instant::now()), 0)) }
    }

    fn forward(&self, severity: Severity, text: String) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (bucket, lost) = &mut *state;
        let record = Record { severity, text, lost: *lost };
        *lost = if bucket.take(Instant::now()) && (self.send)(&record) { 0 } else { lost.saturating_add(1) };
    }
}

impl<S: Subscriber, F: Fn(&Record) -> bool + 'static> Layer<S> for Forward<F> {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.forward(event.metadata().level().into(), text.0);
    }
}

/// An event's message and fields in one line, cut to [`MAX_TEXT`].
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let before = if self.0.is_empty() { "" } else { " " };
        // Cutting is the only error.
        let _ = match field.name() {
            "message" => write!(self, "{before}{value:?}"),
            name => write!(self, "{before}{name}={value:?}"),
        };
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_TEXT - self.0.len();
        let cut = (0..=room.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0);
        self.0.push_str(&text[..cut]);
        if cut == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// The broker's side: what may be shown of what a process sends.
#[derive(Debug)]
pub struct Intake {
    bucket: Bucket,
    lost: u64,
}

impl Intake {
    /// Nothing was sent yet.
    pub fn new(now: Instant) -> Self {
        Self { bucket: Bucket::new(2 * BURST, 2 * RATE, now), lost: 0 }
    }

    /// What to show of `text`; None if the process says too much. The second is how many were not shown before.
    pub fn admit(&mut self, text: &str, now: Instant) -> Option<(String, u64)> {
        if !self.bucket.take(now) {
            self.lost = self.lost.saturating_add(1);
            return None;
        }
        Some((printable(text, MAX_TEXT), std::mem::take(&mut self.lost)))
    }
}

/// A confined process's text as an operator may see it: what a terminal would obey, or would not show, is escaped as in a
/// Rust string (control characters, changes of direction, line ends), and what is longer than `most` bytes is cut.
pub fn printable(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for character in text.trim_end().chars() {
        match character {
            // Escaped in source only.
            '\'' | '"' | '\\' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
        if shown.len() > most {
            while shown.len() > most {
                shown.pop();
            }
            break;
        }
    }
    shown
}

#[cfg(test)]
mod tests;
