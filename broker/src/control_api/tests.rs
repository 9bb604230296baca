use std::sync::{Mutex, PoisonError};

use super::*;

/// The log is one for the whole process: tests that fill it take turns.
static LOG: Mutex<()> = Mutex::new(());

fn api(dir: &tempfile::TempDir) -> (Api, std::path::PathBuf) {
    let path = dir.path().join("x.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    (Api::new(Socket::of(listener, "x", path.clone())), path)
}

fn asking(path: &std::path::Path, what: &Request) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    request(&stream, what).unwrap();
    stream
}

#[test]
fn a_request_is_a_line_and_gets_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (mut api, path) = api(&dir);
    let mut client = UnixStream::connect(&path).unwrap();
    let mut seen = Vec::new();
    for part in ["{\"request\":\"rest", "art\",\"device\":\"disk0\"}\n"] {
        client.write_all(part.as_bytes()).unwrap();
        api.serve(|request| {
            seen.push(request);
            Answer::done()
        });
    }
    assert_eq!(seen, [Request::Restart { device: "disk0".into() }]);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "{\"done\":true}\n");
}

#[test]
fn noise_is_answered_with_an_error_and_silence_makes_nobody_wait() {
    let dir = tempfile::tempdir().unwrap();
    let (mut api, path) = api(&dir);
    let silent: Vec<_> = (0..2 * MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
    api.serve(|_| unreachable!());
    assert_eq!(api.clients.len(), MAX_CLIENTS);
    drop(silent);
    api.serve(|_| unreachable!());
    assert!(api.clients.is_empty());
    for noise in [&b"\n"[..], b"{\"request\":\"explode\"}\n", &[b'x'; 1100]] {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(noise).unwrap();
        for _ in 0..3 {
            api.serve(|_| unreachable!());
        }
        let mut answer = String::new();
        let _ = client.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.contains("error"), "{answer}");
        assert!(api.clients.is_empty());
    }
}

#[test]
fn those_who_follow_the_log_are_few_and_one_who_does_not_read_keeps_nobody() {
    let _turn = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let (mut api, path) = api(&dir);
    let follow = Request::Logs { follow: true };
    // Taken one at a time: more would wait in vain for the socket.
    let followers: Vec<UnixStream> = (0..MAX_CLIENTS)
        .map(|_| {
            let client = asking(&path, &follow);
            api.serve(|_| Answer::Events { follow: true });
            client
        })
        .collect();
    for number in 0..20_000 {
        crate::logging::ring().push(crate::logging::Entry::now("INFO", "test", format!("number {number}")));
        if number % 100 == 0 {
            api.serve(|_| unreachable!());
        }
    }
    assert_eq!(api.clients.len(), MAX_CLIENTS, "those who do not read lose events, and nothing else");
    let mut refused = asking(&path, &follow);
    api.serve(|_| unreachable!());
    let mut answer = String::new();
    refused.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("end one of them"), "{answer}");
    // One that reads now sees the gap, and the end.
    let mut reader = &followers[0];
    reader.set_nonblocking(true).unwrap();
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains("number 19999\"") {
        api.serve(|_| unreachable!());
        while let Ok(length @ 1..) = reader.read(&mut buffer) {
            text.extend_from_slice(&buffer[..length]);
        }
    }
    assert!(String::from_utf8_lossy(&text).contains("events are forgotten"));
    drop(followers);
    api.serve(|_| unreachable!());
    assert!(api.clients.is_empty());
}

#[test]
fn the_console_has_one_holder_until_that_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (mut api, path) = api(&dir);
    let (console, mut guest) = UnixStream::pair().unwrap();
    let give = |_| Answer::Console { console: console.try_clone().unwrap().into(), backlog: b"before".to_vec() };
    let first = asking(&path, &Request::Console);
    api.serve(give);
    assert_eq!(api.console_holder(), Some(std::process::id() as i32));
    let mut second = asking(&path, &Request::Console);
    api.serve(|_| unreachable!());
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("has the console"), "{answer}");
    let mut buffer = [0; 100];
    let received = ipc::scm::receive(first.as_fd(), &mut buffer, true).unwrap();
    guest.write_all(b"hello").unwrap();
    let mut got = UnixStream::from(received.descriptors.into_iter().next().unwrap());
    let mut word = [0; 5];
    got.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"hello");
    drop(first);
    api.serve(|_| unreachable!());
    assert_eq!(api.console_holder(), None);
}

#[test]
fn the_end_of_the_machine_is_told_to_those_who_follow_and_waits_for_none_who_sleeps() {
    let _turn = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let (mut api, path) = api(&dir);
    let mut reading = asking(&path, &Request::Logs { follow: true });
    let _sleeping = asking(&path, &Request::Logs { follow: true });
    api.serve(|_| Answer::Events { follow: true });
    (0..5000).for_each(|_| crate::logging::ring().push(crate::logging::Entry::now("INFO", "end", "x".repeat(100))));
    crate::logging::ring().push(crate::logging::Entry::now("INFO", "test", "the very last".into()));
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        reading.read_to_string(&mut text).map(|_| text)
    });
    api.finish();
    let text = reader.join().unwrap().unwrap();
    assert!(text.contains("the very last"), "{}", text.len());
}
