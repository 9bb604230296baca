use super::*;

const HEAD: &str = r#"
role = "vmm"
[limits]
core = 0
nofile = 64
nproc = 8
memlock = 0
msgqueue = 0
"#;

const NEEDED: &str = r#"
[[allow]]
syscall = "write"
reason = "last words"
[[allow]]
syscall = "gettid"
reason = "last words"
[[allow]]
syscall = "rt_sigreturn"
reason = "last words"
[[allow]]
syscall = "exit_group"
reason = "last words"
"#;

fn parse(rest: &str) -> Result<Profile, String> {
    Profile::parse(Role::Vmm, &format!("{HEAD}{NEEDED}{rest}"))
}

#[test]
fn every_profile_is_sound() {
    for role in Role::ALL {
        let profile = Profile::of(role).unwrap();
        profile.compile(Facts { pid: 1 }).unwrap();
        assert_eq!(profile.limits.core, 0, "{role}");
        for forbidden in ["openat", "socket", "connect", "execve", "execveat", "ptrace", "fork", "rt_sigaction", "kill"]
        {
            assert!(!profile.rules.iter().any(|r| r.syscall.name() == forbidden), "{role} may never {forbidden}");
        }
    }
}

#[test]
fn what_is_wrong_is_refused_with_its_place() {
    for (text, says) in [
        ("[[allow]]\nsyscall = \"opennat\"\nreason = \"x\"\n", "line 23: `opennat`"),
        ("[[allow]]\nsyscall = \"read\"\nreason = \" \"\n", "empty reason"),
        ("[[allow]]\nsyscall = \"read\"\nreason = \"x\"\nwhy = 1\n", "unknown field `why`"),
        ("[[allow]]\nsyscall = \"read\"\n", "missing field `reason`"),
        ("[[allow]]\nsyscall = \"write\"\nreason = \"x\"\nwhen = [\"arg0 == 1\"]\n", "and again"),
        ("[[allow]]\nsyscall = \"read\"\nreason = \"x\"\nwhen = [\"arg6 == 1\"]\n", "arg0 to arg5"),
        ("[[allow]]\nsyscall = \"read\"\nreason = \"x\"\nwhen = [\"arg0 = 1\"]\n", "condition `arg0 = 1`"),
        ("[[refuse]]\nsyscall = \"write\"\nreason = \"x\"\nerrno = \"ENOSYS\"\n", "both allowed and refused"),
        ("[[refuse]]\nsyscall = \"clone3\"\nreason = \"x\"\nerrno = \"EIO\"\n", "ENOSYS or EPERM"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(says), "{error}\nshould say: {says}");
    }
    let error = Profile::parse(Role::Vmm, HEAD).unwrap_err();
    assert!(error.contains("missing field `allow`"), "{error}");
    let error = Profile::parse(Role::DevBlk, &format!("{HEAD}{NEEDED}")).unwrap_err();
    assert!(error.contains("not `dev-blk`"), "{error}");
}

#[test]
fn a_profile_that_could_not_explain_itself_is_refused() {
    let silent = NEEDED.replace("gettid", "getpid");
    assert!(Profile::parse(Role::Vmm, &format!("{HEAD}{silent}")).unwrap_err().contains("gettid must be allowed"));
}

#[test]
fn conditions_decide_as_written() {
    let facts = Facts { pid: 7 };
    let holds = |text: &str, argument: u64| text.parse::<Condition>().unwrap().holds([argument; 6], facts);
    assert!(holds("arg2 & 0x4 == 0x0", 3) && !holds("arg2 & 0x4 == 0x0", 7));
    assert!(holds("arg0 == self", 7) && !holds("arg0 == self", 8) && holds("arg1 != 3", 4) && !holds("arg1 != 3", 3));
    assert!(holds("arg5 <= 9", 9) && !holds("arg5 <= 9", 10));
    let noisy = 0xdead_0000_0003;
    assert!(holds("int arg0 == 3", noisy) && !holds("arg0 == 3", noisy) && !holds("int arg0 != 3", noisy));
}

#[test]
fn alternatives_are_found_in_order() {
    let text = "[[allow]]\nsyscall = \"fcntl\"\nreason = \"a\"\nwhen = [\"int arg1 == 3\"]\n\
                [[allow]]\nsyscall = \"fcntl\"\nreason = \"b\"\nwhen = [\"int arg1 == 1\", \"arg2 == 0\"]\n";
    let profile = parse(text).unwrap();
    let reason =
        |arguments| profile.rule_for(Sysno::fcntl.id().into(), arguments, Facts { pid: 1 }).map(|r| &r.reason[..]);
    assert_eq!(reason([5, 3, 9, 0, 0, 0]), Some("a"));
    assert_eq!(reason([5, 1, 0, 0, 0, 0]), Some("b"));
    assert_eq!(reason([5, 1, 1, 0, 0, 0]), None);
}

/// The address that sendmsg takes is behind a pointer. With flags of its choice, whoever holds a TCP socket whose connection
/// failed could connect it to anybody (MSG_FASTOPEN, tcp(7)).
#[test]
fn a_card_sends_to_no_address_and_connects_nothing_anew() {
    let profile = Profile::of(Role::DevNet).unwrap();
    let allowed = |number, arguments| profile.rule_for(number, arguments, Facts { pid: 1 }).is_some();
    let (quiet, fast) = (libc::MSG_NOSIGNAL as u64, libc::MSG_FASTOPEN as u64);
    assert!(
        allowed(libc::SYS_sendmsg, [5, 6, quiet, 0, 0, 0])
            && !allowed(libc::SYS_sendmsg, [5, 6, quiet | fast, 0, 0, 0])
    );
    assert!(allowed(libc::SYS_sendto, [5, 6, 7, quiet, 0, 0]) && !allowed(libc::SYS_sendto, [5, 6, 7, quiet, 8, 16]));
    assert!(!allowed(libc::SYS_sendto, [5, 6, 7, quiet | fast, 0, 0]));
    for call in [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_sendmmsg,
        libc::SYS_setsockopt,
    ] {
        assert!(!profile.rules.iter().any(|rule| i64::from(rule.syscall.id()) == call));
    }
}
