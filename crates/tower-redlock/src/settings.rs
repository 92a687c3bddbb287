//! What is locked, for how long, and what happens when things go wrong.

use std::fmt;
use std::time::Duration;

use http::Method;
use http::request::Parts;
use redlock_core::{Key, LockError, Redlock, Renew, Request};

use crate::detached::Detached;
use crate::key::{KeyFn, KeyRejection, is_selected};
use crate::outage::Outage;
use crate::rejection::{Rejection, Render};

/// How long the lock of a request is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// Until the handler has returned its response. The default.
    #[default]
    Response,
    /// Until the body of the response has been sent, has failed or was dropped: for handlers
    /// that do their work while they stream. A reader may be as slow as it likes: set a
    /// [`max_hold`](crate::RedlockLayer::max_hold).
    ///
    /// A connection that is upgraded is no body: the lock is released with the 101. Give it a lock of
    /// its own, by [`Redlock::lock`](redlock_core::Redlock::lock), whose guard moves into its task.
    Body,
}

/// What happens to the handler when the client goes away.
///
/// The server drops the future of a request when it notices. hyper notices while it reads the
/// connection: at once for HTTP/2, and for HTTP/1 unless a large request body is unread, or the next
/// request was sent already. A client that closes only its half of an HTTP/1 connection is gone,
/// unless the server was told to allow that (`half_close`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Disconnect {
    /// The handler is dropped where it stands, then the lock is released. The default, and what
    /// happens without this layer too.
    #[default]
    Cancel,
    /// The handler runs to its end under the lock, in a task of its own: for work that must not
    /// stop half-way, such as a payment. [`Detached`] waits for such handlers.
    Detach,
}

/// What happens to the handler when its lock is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lost {
    /// The handler is dropped and the client gets 503 with the type `lock-lost`; with
    /// [`Hold::Body`] a body that is being sent fails. The default.
    #[default]
    Abort,
    /// The handler runs on, and another may begin with the same key beside it: only for handlers
    /// that ask their lease before each step.
    Continue,
}

#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) redlock: Redlock,
    pub(crate) key_fn: KeyFn,
    pub(crate) ttl: Option<Duration>,
    pub(crate) wait: Duration,
    pub(crate) renew: Renew,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) methods: Option<Box<[Method]>>,
    pub(crate) hold: Hold,
    pub(crate) on_disconnect: Disconnect,
    pub(crate) on_lost: Lost,
    pub(crate) render: Option<Render>,
    pub(crate) detached: Detached,
    pub(crate) outage: Outage,
}

impl Settings {
    pub(crate) fn new(redlock: Redlock, key_fn: KeyFn) -> Self {
        Self {
            redlock,
            key_fn,
            ttl: None,
            wait: Duration::ZERO,
            renew: Renew::Yes,
            max_hold: None,
            methods: None,
            hold: Hold::default(),
            on_disconnect: Disconnect::default(),
            on_lost: Lost::default(),
            render: None,
            detached: Detached::default(),
            outage: Outage::default(),
        }
    }

    /// What the layer itself locks for a request.
    pub(crate) fn key_of(&self, parts: &Parts) -> Result<Option<Key>, KeyRejection> {
        match is_selected(self.methods.as_deref(), &parts.method) {
            true => (self.key_fn)(parts),
            false => Ok(None),
        }
    }

    /// Whether the servers can keep a lock with these settings.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        self.request(Key::hashed("check")).check()
    }

    pub(crate) fn request(&self, key: Key) -> Request {
        let mut request = self.redlock.request(key).wait(self.wait).renew(self.renew);
        if let Some(ttl) = self.ttl {
            request = request.ttl(ttl);
        }
        if let Some(max_hold) = self.max_hold {
            request = request.max_hold(max_hold);
        }
        request
    }

    pub(crate) fn rejected(&self, rejection: impl Into<Rejection>) -> Rejection {
        rejection.into().rendered_by(self.render.as_ref()).logged(&self.outage)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Named one by one: a setting that is added must be shown here, or left out on purpose.
        let Self {
            redlock,
            key_fn: _,
            ttl,
            wait,
            renew,
            max_hold,
            methods,
            hold,
            on_disconnect,
            on_lost,
            render: _,
            detached,
            outage: _,
        } = self;
        f.debug_struct("Settings")
            .field("redlock", redlock)
            .field("ttl", ttl)
            .field("wait", wait)
            .field("renew", renew)
            .field("max_hold", max_hold)
            .field("methods", methods)
            .field("hold", hold)
            .field("on_disconnect", on_disconnect)
            .field("on_lost", on_lost)
            .field("detached", detached)
            .finish_non_exhaustive()
    }
}
