//! Whoever takes over a confined process gets nowhere: every attempt of the red team, under every profile, as root and as
//! another user, with the filter and without it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use policy::profile::Profile;
use policy::{Role, last_words};
use syscalls::Sysno;
use tests::red_team::{ATTEMPTS, Finding, Full, Strength, Without};

/// A user without any privilege, to whom nothing belongs.
const NOBODY: u32 = 65534;

/// Runs a lead and returns its findings. `user` runs it as another user, from a copy that this user may reach.
fn lead(role: Role, strength: Strength, calls: &[usize], user: Option<u32>) -> Vec<Finding> {
    let directory = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = directory.path().join("red_team");
    // A copy written by this process could not be executed while another thread's child, just forked, still held it.
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_red_team")).arg(&program).status().unwrap().success());
    let mut command = Command::new(&program);
    command.args(["lead", role.name(), strength.word()]).args(calls.iter().map(ToString::to_string));
    command.current_dir("/").stdin(Stdio::null());
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the lead failed: {error}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Every member was confined as it should be before it tried.
fn assert_confined(findings: &[Finding], role: Role) {
    for finding in findings {
        assert_eq!(finding.lacks, Vec::<String>::new(), "{role}: {}: {}", finding.attempt, finding.words);
        assert!(finding.landlock_proved, "{role}: {}: Landlock was not seen to deny", finding.attempt);
    }
}

fn assert_ended_by_profile(finding: &Finding, role: Role, call: &str) {
    let at = format!("{role}: {}: {finding:?}", finding.attempt);
    assert_eq!((finding.survived, finding.exit), (None, Some(last_words::VIOLATION)), "{at}");
    assert!(finding.words.contains(&format!("bulkhead: {role} thread 1 broke its profile: {call}")), "{at}");
    assert!(finding.words.contains(role.file()), "{at}");
}

fn every_attempt_fails(role: Role, user: Option<u32>) {
    let findings = lead(role, Strength::Full, &[], user);
    assert_eq!(findings.len(), ATTEMPTS.len());
    assert_confined(&findings, role);
    for (finding, attempt) in findings.iter().zip(ATTEMPTS) {
        assert_eq!(finding.attempt, attempt.name);
        match attempt.full {
            Full::Violates(call) => assert_ended_by_profile(finding, role, call.name()),
            Full::Fails(errno) => assert_eq!(finding.survived, Some(errno), "{finding:?}"),
            Full::Killed => assert_eq!((finding.survived, finding.signal), (None, Some(libc::SIGSYS)), "{finding:?}"),
        }
    }
}

fn other_layers_hold(user: Option<u32>) {
    let findings = lead(Role::DevBlk, Strength::WithoutFilter, &[], user);
    assert_eq!(findings.len(), ATTEMPTS.len());
    assert_confined(&findings, Role::DevBlk);
    for (finding, attempt) in findings.iter().zip(ATTEMPTS) {
        match (attempt.without, finding.survived) {
            // Not in this kernel: fine too.
            (Without::Fails(_), Some(libc::ENOSYS)) => {}
            (Without::Fails(with), Some(errno)) => assert!(with.contains(&errno), "{}: errno {errno}", attempt.name),
            (Without::Fails(_), None) => panic!("{} was not made: {finding:?}", attempt.name),
            (Without::Harmless, _) => {}
        }
    }
}

/// Another user to run as, where that is possible.
fn another_user() -> Option<u32> {
    nix::unistd::geteuid().is_root().then_some(NOBODY)
}

#[test]
fn every_attempt_on_the_vmm_profile_fails() {
    every_attempt_fails(Role::Vmm, None);
}

#[test]
fn every_attempt_on_the_disk_profile_fails() {
    every_attempt_fails(Role::DevBlk, None);
}

#[test]
fn every_attempt_on_the_cards_profile_fails() {
    every_attempt_fails(Role::DevNet, None);
}

#[test]
fn every_attempt_fails_for_a_broker_without_privilege() {
    let user = another_user();
    Role::ALL.into_iter().for_each(|role| every_attempt_fails(role, user));
}

#[test]
fn without_the_filter_the_other_layers_hold() {
    other_layers_hold(None);
    other_layers_hold(another_user());
}

/// A user namespace in which no network namespace can be made is a host that lacks one layer.
#[test]
fn a_host_that_lacks_a_layer_is_told_which() {
    let script = "echo 0 > /proc/sys/user/max_net_namespaces && exec \"$0\" lead dev-blk full";
    let member = env!("CARGO_BIN_EXE_red_team");
    let output = Command::new("unshare").args(["-Ur", "sh", "-c", script, member]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("lacks the layer `net-namespace`"), "{error}");
    assert!(error.contains("--allow-missing net-namespace"), "{error}");
}

/// uretprobe(2) and uprobe(2), which the kernel itself calls from a trampoline of its own: recent kernels let them pass
/// every filter, and answer SIGILL to anybody else.
const PROBES: [usize; 2] = [335, 336];

/// Each call that a profile does not name ends the process, with arguments that nothing forbids in particular.
#[test]
fn a_call_outside_a_profile_ends_the_process() {
    for role in Role::ALL {
        let profile = Profile::of(role).unwrap();
        let named: BTreeSet<usize> = profile.rules.iter().map(|r| r.syscall.id() as usize).collect();
        let outside = |n: &usize| !named.contains(n) && !profile.refuses(*n as i64) && !PROBES.contains(n);
        let last = Sysno::last().id() as usize;
        // Beyond the end of the table, too, and in the numbers of the x32 ABI.
        let calls: Vec<usize> = (0..=last + 2).chain([0x4000_0000, 0x4000_0000 + 59]).filter(outside).collect();
        let findings = lead(role, Strength::Full, &calls, None);
        assert_eq!(findings.len(), calls.len());
        for (finding, call) in findings.iter().zip(calls) {
            let name = Sysno::new(call).map_or(format!("system call {call}"), |c| c.name().to_string());
            assert_ended_by_profile(finding, role, &name);
        }
    }
}
