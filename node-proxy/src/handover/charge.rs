//! Who acts for the node.

use tokio::sync::watch;

/// Whether this process is the one that accepts connections, looks after rules, keeps files and reports.
#[derive(Clone, Debug)]
pub struct Charge(watch::Sender<Standing>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Another process is in charge, and will hand over.
    Awaited,
    Held,
    /// Another process has taken over.
    GivenUp,
}

impl Charge {
    /// Of a process without a predecessor.
    pub fn held() -> Self {
        Self(watch::Sender::new(Standing::Held))
    }

    /// Of a process that waits for its predecessor.
    pub fn awaited() -> Self {
        Self(watch::Sender::new(Standing::Awaited))
    }

    pub fn is_held(&self) -> bool {
        *self.0.borrow() == Standing::Held
    }

    pub fn is_given_up(&self) -> bool {
        *self.0.borrow() == Standing::GivenUp
    }

    /// Once given up it stays so.
    pub fn take(&self) {
        self.0.send_if_modified(|standing| {
            let awaited = *standing == Standing::Awaited;
            if awaited {
                *standing = Standing::Held;
            }
            awaited
        });
    }

    pub fn give_up(&self) {
        self.0.send_replace(Standing::GivenUp);
    }

    /// Returns when this process is, or has been, in charge.
    pub async fn begun(&self) {
        // Fails only without a sender, and `self` is one.
        let _ = self.0.subscribe().wait_for(|standing| *standing != Standing::Awaited).await;
    }

    /// Returns when another process has taken over.
    pub async fn given_up(&self) {
        let _ = self.0.subscribe().wait_for(|standing| *standing == Standing::GivenUp).await;
    }
}
