use std::sync::Arc;
use std::time::Duration;

use tracing_subscriber::prelude::*;

use super::*;

/// Runs `log` with a layer whose records end up in the returned list.
fn forwarded(accept: usize, log: impl FnOnce()) -> Vec<Record> {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let to = sent.clone();
    let layer = Forward::new(move |record: &Record| {
        let mut to = to.lock().unwrap();
        let room = to.len() < accept;
        if room {
            to.push(record.clone());
        }
        room
    });
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
    Arc::try_unwrap(sent).unwrap().into_inner().unwrap()
}

#[test]
fn events_become_records() {
    let records = forwarded(9, || {
        tracing::warn!(queue = 3, name = "disk0", "it \u{1b}[31m stalls");
        tracing::debug!("{}", "é".repeat(MAX_TEXT));
    });
    assert_eq!(records[0].severity, Severity::Warn);
    assert_eq!(records[0].text, "it \u{1b}[31m stalls queue=3 name=\"disk0\"");
    assert_eq!((records[1].text.len(), records[1].severity), (MAX_TEXT, Severity::Debug));
    records.iter().for_each(|r| r.validate().unwrap());
}

#[test]
fn too_many_are_dropped_and_counted() {
    let records = forwarded(usize::MAX, || (0..10 * BURST).for_each(|n| tracing::info!("{n}")));
    // The bucket fills a little while the loop runs; on a slow machine it fills more.
    assert!(records.len() >= BURST as usize && records[0].lost == 0);
    let told: u32 = records.iter().map(|r| r.lost).sum();
    assert!(told as usize + records.len() <= 10 * BURST as usize);
}

#[test]
fn what_a_full_channel_refuses_is_counted() {
    let sent = Mutex::new(Vec::new());
    let open = Mutex::new(false);
    let forward = Forward::new(|record: &Record| {
        let open = *open.lock().unwrap();
        if open {
            sent.lock().unwrap().push(record.lost);
        }
        open
    });
    (0..3).for_each(|_| forward.forward(Severity::Info, "x".into()));
    *open.lock().unwrap() = true;
    forward.forward(Severity::Info, "x".into());
    forward.forward(Severity::Info, "x".into());
    assert_eq!(*sent.lock().unwrap(), [3, 0]);
}

#[test]
fn the_broker_limits_and_strips_what_it_shows() {
    let start = Instant::now();
    let mut intake = Intake::new(start);
    let (text, lost) = intake.admit("a\u{1b}[2Jb\r\nc\n", start).unwrap();
    assert_eq!((&text[..], lost), (r"a\u{1b}[2Jb\r\nc", 0));
    let shown = (0..1000).filter(|_| intake.admit("x", start).is_some()).count() as u64;
    assert_eq!(shown, 2 * u64::from(BURST) - 1);
    let (_, lost) = intake.admit("x", start + Duration::from_secs(1)).unwrap();
    assert_eq!(lost, 1000 - shown);
}

#[test]
fn nothing_that_a_terminal_obeys_is_shown() {
    assert_eq!(printable("plain \"text\" of `Grüße` \\ it's\n", MAX_TEXT), "plain \"text\" of `Grüße` \\ it's");
    for hostile in ["\u{1b}]0;x\u{7}", "\u{9b}2J", "\u{7f}", "\r", "\u{202e}", "\u{2028}", "\0", "\u{2066}", "\t"] {
        let shown = printable(&format!("{hostile}x"), MAX_TEXT);
        assert!(shown.starts_with('\\') && shown.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{shown:?}");
        assert_eq!(printable(&shown, MAX_TEXT), shown, "once is enough");
    }
    for long in ["x", "é", "\u{1b}"] {
        assert!(
            (MAX_TEXT - 10..=MAX_TEXT).contains(&printable(&long.repeat(2 * MAX_TEXT), MAX_TEXT).len()),
            "{long:?}"
        );
    }
}
