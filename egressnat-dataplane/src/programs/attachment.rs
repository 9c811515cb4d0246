//! How programs get on interfaces.

use std::io;

use super::{ProgramsError, query};

/// How programs are put on interfaces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Attachment {
    /// TCX where the kernel has it (6.6), `clsact` elsewhere.
    #[default]
    Automatic,
    /// TCX only. Other programs may order themselves around ours, and nobody takes it off by accident. For each interface
    /// that has none yet the kernel waits for an RCU grace period, about 15 ms in which it changes no other interface.
    Tcx,
    /// A filter of a `clsact` queueing discipline, for kernels before 6.6, for a CNI that wants all programs there, or for nodes
    /// where hundreds of pods start at once: attaching takes the kernel no time to speak of.
    Clsact,
}

/// What was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mechanism {
    Tcx,
    Clsact,
}

impl Attachment {
    pub(super) fn mechanism(self) -> Result<Mechanism, ProgramsError> {
        self.choose(|| query::attached(LOOPBACK, aya::programs::TcAttachType::Ingress).map(drop))
    }

    /// `ask_tcx` asks something that only a kernel with TCX can answer.
    fn choose(self, ask_tcx: impl FnOnce() -> io::Result<()>) -> Result<Mechanism, ProgramsError> {
        if self == Attachment::Clsact {
            return Ok(Mechanism::Clsact);
        }
        // Before 6.6 the kernel does not know the kind of attachment; any other error is no answer to the question.
        let has_tcx = !ask_tcx().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL));
        match (self, has_tcx) {
            (_, true) => Ok(Mechanism::Tcx),
            (Attachment::Tcx, false) => Err(ProgramsError::NoTcx),
            (_, false) => {
                tracing::info!(
                    "the kernel is older than 6.6 and has no TCX: programs go to clsact"
                );
                Ok(Mechanism::Clsact)
            }
        }
    }
}

/// The first interface of every namespace.
const LOOPBACK: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_tcx_gets_clsact_or_an_error_that_names_the_version() {
        let old = || Err(io::Error::from_raw_os_error(libc::EINVAL));
        let forbidden = || Err(io::Error::from_raw_os_error(libc::EPERM));
        let choose = |attachment: Attachment| attachment.choose(old).unwrap();
        assert_eq!(choose(Attachment::Automatic), Mechanism::Clsact);
        assert_eq!(choose(Attachment::Clsact), Mechanism::Clsact);
        let error = Attachment::Tcx.choose(old).unwrap_err().to_string();
        assert!(error.contains("6.6") && error.contains("clsact"), "{error}");
        for attachment in [Attachment::Automatic, Attachment::Tcx] {
            assert_eq!(attachment.choose(|| Ok(())).unwrap(), Mechanism::Tcx);
            assert_eq!(attachment.choose(forbidden).unwrap(), Mechanism::Tcx);
        }
    }
}
