//! The machine's recent events, the oldest forgotten for the newest. Each has a number, so that several readers can go
//! through them at their own pace and see what they missed.

use std::collections::VecDeque;

use ipc::telemetry::printable;
use serde_json::{Value, json};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Who says what no confined process says.
pub const BROKER: &str = "broker";

/// Bytes of events that are kept.
const ROOM: usize = 256 << 10;
/// What an event costs beside its texts.
const EACH: usize = 128;
/// Longest text that is shown, in bytes.
const MAX_SHOWN: usize = 8 << 10;

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// RFC 3339, UTC.
    pub time: String,
    pub level: String,
    /// Who said it: the broker, or a confined process by its name.
    pub who: String,
    /// What. Of a confined process: escaped.
    pub text: String,
}

impl Entry {
    /// Said now.
    pub fn now(level: &str, who: &str, text: String) -> Self {
        let mut time = String::new();
        // A clock that cannot be read leaves it empty.
        let _ = SystemTime.format_time(&mut Writer::new(&mut time));
        Self { time, level: level.into(), who: who.into(), text }
    }

    /// As standard error has it: for programs, or for people, who see that it comes from the broker.
    pub fn line(&self, json: bool) -> String {
        match &self.who[..] {
            _ if json => self.json(),
            BROKER => format!("{:>5} {}\n", self.level, self.text),
            who => format!("{:>5} {who}: {}\n", self.level, self.text),
        }
    }

    /// A line for programs.
    pub fn json(&self) -> String {
        let Self { time, level, who, text } = self;
        format!("{}\n", json!({ "time": time, "level": level, "who": who, "text": text }))
    }

    /// The line for people of one for programs, which came from elsewhere.
    pub fn shown(line: &Value) -> String {
        let word = |key: &str| printable(line[key].as_str().unwrap_or("?"), MAX_SHOWN);
        format!("{} {:>5} {}: {}\n", word("time"), word("level"), word("who"), word("text"))
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ring {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Number of the oldest that is kept.
    first: u64,
}

impl Ring {
    /// Nothing has happened yet.
    pub const fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, first: 0 }
    }

    /// Adds the newest.
    pub fn push(&mut self, entry: Entry) {
        self.bytes += cost(&entry);
        self.entries.push_back(entry);
        while self.bytes > ROOM
            && let Some(oldest) = self.entries.pop_front()
        {
            self.bytes -= cost(&oldest);
            self.first += 1;
        }
    }

    /// Number of the next.
    pub fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Event `cursor`, or the oldest after it, and how many between are forgotten. Moves the cursor past it.
    pub fn next(&self, cursor: &mut u64) -> Option<(&Entry, u64)> {
        let missed = self.first.saturating_sub(*cursor);
        let at = cursor.saturating_sub(self.first);
        let entry = self.entries.get(usize::try_from(at).ok()?)?;
        *cursor = self.first + at + 1;
        Some((entry, missed))
    }
}

fn cost(entry: &Entry) -> usize {
    EACH + entry.time.len() + entry.level.len() + entry.who.len() + entry.text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str) -> Entry {
        Entry { time: "t".into(), level: "INFO".into(), who: "disk0".into(), text: text.into() }
    }

    #[test]
    fn the_oldest_is_forgotten_and_its_readers_are_told() {
        let (mut ring, mut cursor) = (Ring::new(), 0);
        assert!(ring.next(&mut cursor).is_none());
        ring.push(entry("0"));
        ring.push(entry("1"));
        assert_eq!(ring.next(&mut cursor).map(|(e, missed)| (e.text.clone(), missed)), Some(("0".into(), 0)));
        for number in 2..10_000 {
            ring.push(entry(&number.to_string()));
        }
        assert!(ring.bytes <= ROOM && ring.end() == 10_000);
        let (oldest, missed) = ring.next(&mut cursor).unwrap();
        assert_eq!((oldest.text.parse(), missed), (Ok(ring.first), ring.first - 1));
        let mut left = 0;
        while ring.next(&mut cursor).is_some_and(|(_, missed)| missed == 0) {
            left += 1;
        }
        assert_eq!((cursor, left + 1), (10_000, ring.entries.len()));
    }

    #[test]
    fn what_came_from_elsewhere_is_escaped_before_it_is_shown() {
        let line = json!({ "time": "t", "level": "INFO", "who": "\u{1b}c", "text": "a\u{1b}[2J\nb" });
        assert_eq!(Entry::shown(&line), "t  INFO \\u{1b}c: a\\u{1b}[2J\\nb\n");
        assert_eq!(Entry::shown(&json!(7)), "?     ? ?: ?\n");
        assert_eq!(entry("x").line(false), " INFO disk0: x\n");
    }
}
