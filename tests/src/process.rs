//! What a monitor's processes cost, as /proc tells: memory beside guest RAM, and processor time.

use std::fs;

/// Bytes of a process and its descendants that are not guest RAM.
pub fn own_memory(root: u32) -> u64 {
    processes(root).into_iter().map(own_memory_of).sum()
}

/// User and system time of a process and its descendants, in ticks.
pub fn cpu_ticks(root: u32) -> u64 {
    processes(root).into_iter().map(cpu_ticks_of).sum()
}

/// A process and its descendants.
fn processes(root: u32) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    found
}

/// The proportional set size of every mapping but guest RAM: Bulkhead's memfd of that name, or QEMU's, which is its
/// largest anonymous mapping.
fn own_memory_of(pid: u32) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut total, mut largest, mut is_ram, mut size) = (0, (0, 0), false, 0);
    for line in smaps.lines() {
        let kilobytes =
            |line: &str| line.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        if line.starts_with("Size:") {
            size = kilobytes(line);
        } else if line.starts_with("Pss:") {
            let pss = if is_ram { 0 } else { kilobytes(line) * 1024 };
            total += pss;
            largest = largest.max((size, pss));
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            is_ram = line.contains("/memfd:guest");
        }
    }
    let qemu = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("qemu"));
    if qemu { total - largest.1 } else { total }
}

/// User and system time in ticks: fields 14 and 15 of /proc/PID/stat.
fn cpu_ticks_of(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    fields.split(' ').skip(11).take(2).filter_map(|text| text.parse::<u64>().ok()).sum()
}
