//! What can be seen of a machine's processes, as JSON for programs and as text for people. The broker looks through /proc
//! each time it is asked, as it did before it handed anything over; nothing here comes from the processes themselves.

use ipc::telemetry::{MAX_TEXT, printable};
use nix::unistd::Pid;
use policy::Layer;
use policy::verify::Verified;
use serde_json::{Value, json};

/// What is seen of one process now, which was given guest RAM or not.
pub fn process(name: &str, role: &str, pid: Pid, given_ram: bool) -> Value {
    let seen = match Verified::of(pid) {
        Ok(seen) => seen,
        // It may be about to be replaced.
        Err(error) => return json!({ "name": name, "role": role, "pid": pid.as_raw(), "error": error.to_string() }),
    };
    let capabilities = seen.threads.values().flat_map(|status| status.capabilities).fold(0, |all, set| all | set);
    let filters = seen.threads.values().map(|s| if s.seccomp == 2 { s.filters } else { 0 }).min().unwrap_or(0);
    let namespaces: Vec<&str> = seen.own_namespaces.iter().map(|layer| layer.name()).collect();
    let findings = seen.findings().into_iter().map(|(layer, what)| format!("{layer}: {what}"));
    let taken =
        (seen.guest_ram > 0 && !given_ram).then(|| "guest RAM: it maps some, which it was not given".to_owned());
    let findings: Vec<String> = findings.chain(taken).collect();
    json!({
        "name": name,
        "role": role,
        "pid": pid.as_raw(),
        "threads": seen.threads.len(),
        "namespaces": namespaces,
        "capabilities": capabilities,
        "no_new_privs": seen.threads.values().all(|status| status.no_new_privs),
        "seccomp_filters": filters,
        "mapped_guest_ram": seen.guest_ram,
        "given_guest_ram": given_ram,
        "mounts": seen.mounts,
        "descriptors": seen.descriptors,
        "lacks": findings,
    })
}

/// A machine, as `bulkhead inspect` prints it. What is not there is not shown: the broker may be of another version.
pub fn text(machine: &Value) -> String {
    let (name, broker) = (word(&machine["name"]), word(&machine["broker"]));
    let mut text = format!("machine {name}, {}, broker {broker}\n", word(&machine["state"]));
    if machine["cgroup"].is_object() {
        text.push_str(&format!("uses {}\n", usage(&machine["cgroup"])));
    }
    for process in machine["processes"].as_array().into_iter().flatten() {
        text.push_str(&one(process));
    }
    for device in machine["devices"].as_array().into_iter().flatten() {
        let (name, state) = (word(&device["name"]), word(&device["state"]));
        text.push_str(&format!(
            "{name}: {state}, {}; replaced {} times, {} requests set aside\n",
            word(&device["what"]),
            word(&device["replaced"]),
            word(&device["quarantined"])
        ));
    }
    text
}

fn one(process: &Value) -> String {
    let mut text =
        format!("{}: process {}, {}\n", word(&process["name"]), word(&process["pid"]), word(&process["role"]));
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:18} {value}\n"));
    if !process["error"].is_null() {
        line("cannot be seen", word(&process["error"]));
        return text;
    }
    let list = |value: &Value| value.as_array().into_iter().flatten().map(word).collect::<Vec<_>>();
    let own = list(&process["namespaces"]);
    let all = own.len() == Layer::NAMESPACES.len();
    line("own namespaces", if all { format!("all {}", own.len()) } else { own.join(", ") });
    let capabilities = process["capabilities"].as_u64().unwrap_or(u64::MAX);
    line("capabilities", if capabilities == 0 { "none".into() } else { format!("{capabilities:#x}") });
    line("no_new_privs", word(&process["no_new_privs"]));
    let (filters, threads) = (word(&process["seccomp_filters"]), word(&process["threads"]));
    line("seccomp", format!("{filters} filters on each of {threads} threads"));
    let shared = process["role"] != "vmm" && process["given_guest_ram"] == true;
    let why = if shared { ", given to it by dma=shared" } else { "" };
    line("mapped guest RAM", format!("{} bytes{why}", word(&process["mapped_guest_ram"])));
    if process["cgroup"].is_object() {
        line("uses", usage(&process["cgroup"]));
    }
    line("mounts", list(&process["mounts"]).join("; "));
    for missing in list(&process["lacks"]) {
        line("lacks", missing);
    }
    let mut open: Vec<(u32, String)> = process["descriptors"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(number, what)| Some((number.parse().ok()?, word(what))))
        .collect();
    open.sort();
    for (number, what) in open {
        line(&format!("descriptor {number}"), what);
    }
    text
}

/// What a control group says, in its own words: `memory_current 1048576, memory_max max, ...`.
fn usage(group: &Value) -> String {
    let all = group.as_object().into_iter().flatten().filter(|(key, _)| *key != "path");
    let items: Vec<String> = all.map(|(key, value)| format!("{} {}", printable(key, MAX_TEXT), word(value))).collect();
    format!("{} (control group {})", items.join(", "), word(&group["path"]))
}

fn word(value: &Value) -> String {
    match value {
        // A process names what it makes: what is open under such a name is text of its own.
        Value::String(text) => printable(text, MAX_TEXT),
        Value::Null => "?".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_shown_with_all_that_it_lacks() {
        let own = process("me", "test", Pid::this(), false);
        let shown = text(&json!({ "name": "m", "broker": 1, "processes": [own], "devices": [] }));
        assert!(shown.contains(&format!("me: process {}, test", Pid::this())), "{shown}");
        assert!(shown.contains("lacks") && shown.contains("mapped guest RAM   0 bytes"), "{shown}");
        let gone = process("gone", "test", Pid::from_raw(i32::MAX), false);
        assert!(one(&gone).contains("cannot be seen"));
        text(&json!({ "processes": [{}, 7], "devices": ["x"], "cgroup": { "memory_current": 7 } }));
        let named = json!({ "name": "x", "descriptors": { "9": "/memfd:\u{1b}[2J" } });
        assert!(!one(&named).contains('\u{1b}'));
    }
}
