//! The layers of confinement: a name for each, what it keeps out, and the remedy where the host lacks it.
//!
//! A layer that cannot be had is an error. An operator who accepts its absence says so by its name.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// One layer. The order is that of the names in listings, not that of application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Layer {
    UserNamespace,
    MountNamespace,
    PidNamespace,
    NetNamespace,
    IpcNamespace,
    UtsNamespace,
    CgroupNamespace,
    EmptyRoot,
    Limits,
    Descriptors,
    Capabilities,
    NoNewPrivs,
    Speculation,
    Landlock,
    Seccomp,
}

/// Layers whose absence is accepted.
pub type Layers = BTreeSet<Layer>;

/// No layer has this name.
#[derive(Debug, thiserror::Error)]
#[error("no layer of confinement is called `{name}`: {}", Layer::ALL.map(Layer::name).join(", "))]
pub struct UnknownLayer {
    name: String,
}

/// What a layer is: the one table of this module.
struct About {
    name: &'static str,
    keeps: &'static str,
    remedy: &'static str,
}

const USER_REMEDY: &str = "allow unprivileged user namespaces (sysctl user.max_user_namespaces above 0, \
    kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), or run as root";
const NAMESPACE_REMEDY: &str = "use a kernel with this namespace, and in a container allow unshare(2)";

impl Layer {
    /// Every layer.
    pub const ALL: [Self; 15] = [
        Self::UserNamespace,
        Self::MountNamespace,
        Self::PidNamespace,
        Self::NetNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
        Self::EmptyRoot,
        Self::Limits,
        Self::Descriptors,
        Self::Capabilities,
        Self::NoNewPrivs,
        Self::Speculation,
        Self::Landlock,
        Self::Seccomp,
    ];

    /// The layers that are namespaces, entered before the program is executed.
    pub const NAMESPACES: [Self; 7] = [
        Self::UserNamespace,
        Self::MountNamespace,
        Self::PidNamespace,
        Self::NetNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::CgroupNamespace,
    ];

    /// The name by which configuration and messages call it.
    pub fn name(self) -> &'static str {
        self.about().name
    }
    /// What it keeps a process from.
    pub fn keeps(self) -> &'static str {
        self.about().keeps
    }
    /// What an operator can do where the host lacks it.
    pub fn remedy(self) -> &'static str {
        self.about().remedy
    }

    fn about(self) -> About {
        let (name, keeps, remedy) = match self {
            Self::UserNamespace => ("user-namespace", "rights over anything outside", USER_REMEDY),
            Self::MountNamespace => ("mount-namespace", "the host's mounts", NAMESPACE_REMEDY),
            Self::PidNamespace => ("pid-namespace", "seeing or signalling other processes", NAMESPACE_REMEDY),
            Self::NetNamespace => ("net-namespace", "every network and abstract socket", NAMESPACE_REMEDY),
            Self::IpcNamespace => ("ipc-namespace", "System V and POSIX message objects", NAMESPACE_REMEDY),
            Self::UtsNamespace => ("uts-namespace", "the host's name", NAMESPACE_REMEDY),
            Self::CgroupNamespace => ("cgroup-namespace", "the host's control groups", NAMESPACE_REMEDY),
            Self::EmptyRoot => ("empty-root", "every file", "allow tmpfs mounts and pivot_root in user namespaces"),
            Self::Limits => ("limits", "core files and endless resources", "raise the hard limits of this session"),
            Self::Descriptors => ("descriptors", "files it inherited by accident", "use Linux 5.9 or later"),
            Self::Capabilities => ("capabilities", "every privilege, now and after exec", "use Linux 4.3 or later"),
            Self::NoNewPrivs => ("no-new-privs", "privilege from set-user-ID programs", "use Linux 3.5 or later"),
            Self::Speculation => (
                "speculation",
                "some speculative reads across processes",
                "use a kernel with PR_SET_SPECULATION_CTRL (Linux 4.17) that leaves the mitigations to prctl",
            ),
            Self::Landlock => (
                "landlock",
                "files and networks, should a namespace fail",
                "use Linux 5.13 or later, with landlock among the security modules of /sys/kernel/security/lsm",
            ),
            Self::Seccomp => ("seccomp", "system calls that its profile does not name", "use CONFIG_SECCOMP_FILTER"),
        };
        About { name, keeps, remedy }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layer {
    type Err = UnknownLayer;

    fn from_str(name: &str) -> Result<Self, UnknownLayer> {
        Self::ALL.into_iter().find(|l| l.name() == name).ok_or_else(|| UnknownLayer { name: name.into() })
    }
}

/// A layer that could not be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "confinement lacks the layer `{layer}` (it keeps a process from {}): {step} failed. Remedy: {}; or accept its \
     absence with --allow-missing {layer}", layer.keeps(), layer.remedy()
)]
pub struct MissingLayer {
    /// Which.
    pub layer: Layer,
    /// What was being done.
    pub step: &'static str,
    /// Why it failed.
    #[source]
    pub source: nix::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_layers() {
        for layer in Layer::ALL {
            assert_eq!(layer.name().parse::<Layer>().unwrap(), layer);
        }
        assert!("sec-comp".parse::<Layer>().unwrap_err().to_string().contains("seccomp"));
    }

    #[test]
    fn a_missing_layer_is_named_with_its_remedy() {
        let missing = MissingLayer { layer: Layer::Landlock, step: "creating a ruleset", source: nix::Error::ENOSYS };
        let text = missing.to_string();
        assert!(text.contains("landlock") && text.contains("5.13") && text.contains("--allow-missing landlock"));
    }
}
