//! Who a caller is, by service account token: judged by a key file (sandbox) or by the API server (TokenReview).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use culvert_identity::token::{self, Caller, Claimed, ObjectRef, TokenError, Verifier};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::Client;
use kube::api::{Api, PostParams};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::client::within;

/// A caller is believed for so long without asking again; its token may be revoked meanwhile (its pod deleted).
const BELIEVED: Duration = Duration::from_secs(60);
/// A token that was refused is refused for so long without asking again.
const REFUSED: Duration = Duration::from_secs(10);
/// Answers remembered. A mesh has one token per node and part of the mesh.
const MOST_REMEMBERED: usize = 8192;
/// Questions to the API server at the same time; further callers wait.
const MOST_ASKED: usize = 16;
/// A caller that waits longer for its turn is told to come again.
const TURN: Duration = Duration::from_secs(5);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

/// Judges tokens.
pub enum Tokens {
    /// By a JWKS file.
    Keys(Verifier),
    /// By the API server.
    Review(Reviewer),
}

impl Tokens {
    /// Who holds this token.
    ///
    /// # Errors
    /// Why the token is not to be believed, or that nobody can say at present. Nothing of the token is in the message.
    pub async fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        match self {
            Self::Keys(verifier) => verifier.verify(token),
            Self::Review(reviewer) => reviewer.verify(token).await,
        }
    }
}

/// Asks the API server (TokenReview) and remembers answers for a short time.
pub struct Reviewer {
    reviews: Api<TokenReview>,
    audience: String,
    /// By hash: a dump of this process's memory gives no tokens away.
    answers: Mutex<HashMap<[u8; 32], Answer>>,
    turns: Semaphore,
}

#[derive(Clone)]
struct Answer {
    verdict: Result<Caller, TokenError>,
    until: Instant,
}

impl Reviewer {
    pub fn new(client: Client, audience: impl Into<String>) -> Self {
        Self {
            reviews: Api::all(client),
            audience: audience.into(),
            answers: Mutex::default(),
            turns: Semaphore::new(MOST_ASKED),
        }
    }

    async fn verify(&self, token: &str) -> Result<Caller, TokenError> {
        // What is plainly no token of a service account for us costs the API server nothing.
        let claimed = token::claimed(token)?;
        claimed.check(&self.audience, SystemTime::now())?;
        let hash: [u8; 32] = Sha256::digest(token).into();
        if let Some(verdict) = self.remembered(&hash) {
            return verdict;
        }
        let unavailable = |detail: &str| TokenError::Unavailable(detail.to_owned());
        let _turn = match tokio::time::timeout(TURN, self.turns.acquire()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => return Err(unavailable("too many tokens are waiting to be checked")),
        };
        // Somebody with the same token may have been before us in the queue.
        if let Some(verdict) = self.remembered(&hash) {
            return verdict;
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let answer = within(self.reviews.create(&PostParams::default(), &review)).await;
        let status = answer.map_err(|error| unavailable(&error.to_string()))?.status.unwrap_or_default();
        let verdict = judge(&status, &claimed, &self.audience);
        let lasts = if verdict.is_ok() { BELIEVED } else { REFUSED };
        self.remember(hash, Answer { verdict: verdict.clone(), until: Instant::now() + lasts });
        verdict
    }

    fn remembered(&self, hash: &[u8; 32]) -> Option<Result<Caller, TokenError>> {
        let answers = self.lock();
        let answer = answers.get(hash).filter(|answer| Instant::now() < answer.until)?;
        Some(answer.verdict.clone())
    }

    fn remember(&self, hash: [u8; 32], answer: Answer) {
        let mut answers = self.lock();
        if answers.len() >= MOST_REMEMBERED {
            let now = Instant::now();
            answers.retain(|_, answer| now < answer.until);
        }
        // Still full: whoever fills it is asked about again.
        if answers.len() < MOST_REMEMBERED {
            answers.insert(hash, answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the API server's answer means.
fn judge(status: &TokenReviewStatus, claimed: &Claimed, audience: &str) -> Result<Caller, TokenError> {
    if status.authenticated != Some(true) {
        let said = status.error.as_deref().filter(|said| !said.is_empty());
        return Err(TokenError::NotAuthenticated(said.unwrap_or("no reason given").to_owned()));
    }
    // An API server that does not know about audiences authenticates any token.
    if !status.audiences.iter().flatten().any(|of| of == audience) {
        return Err(TokenError::Audience);
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.clone().unwrap_or_default();
    let (namespace, service_account) = token::service_account(&name).ok_or(TokenError::Subject)?;
    Ok(Caller {
        namespace,
        service_account,
        pod: named(&user, POD_NAME, POD_UID),
        node: named(&user, NODE_NAME, NODE_UID),
        // The API server has just vouched for the token, and with it for this claim.
        expires: claimed.expires,
    })
}

fn named(user: &UserInfo, name: &str, uid: &str) -> Option<ObjectRef> {
    let extra = |key: &str| match user.extra.as_ref()?.get(key)?.as_slice() {
        [one] if !one.is_empty() => Some(one.clone()),
        _ => None,
    };
    Some(ObjectRef { name: extra(name)?, uid: extra(uid).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn status(extra: &[(&str, &[&str])]) -> TokenReviewStatus {
        let extra: BTreeMap<String, Vec<String>> = extra
            .iter()
            .map(|(key, values)| {
                ((*key).to_owned(), values.iter().map(|value| (*value).to_owned()).collect())
            })
            .collect();
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec!["culvert.dev".to_owned()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:culvert-system:culvert-node-proxy".to_owned()),
                extra: Some(extra),
                ..UserInfo::default()
            }),
            error: None,
        }
    }

    fn claimed() -> Claimed {
        Claimed {
            audiences: vec!["culvert.dev".to_owned()],
            expires: SystemTime::now() + Duration::from_secs(600),
        }
    }

    #[test]
    fn the_node_is_the_one_that_the_api_server_names() {
        let with_node =
            status(&[(POD_NAME, &["proxy"]), (POD_UID, &["p"]), (NODE_NAME, &["one"]), (NODE_UID, &["n"])]);
        let caller = judge(&with_node, &claimed(), "culvert.dev").unwrap();
        assert!(caller.is("culvert-system", "culvert-node-proxy"));
        assert_eq!(caller.node, Some(ObjectRef { name: "one".into(), uid: "n".into() }));
        assert_eq!(caller.pod, Some(ObjectRef { name: "proxy".into(), uid: "p".into() }));
        // Kubernetes before 1.32 names the pod only; two values are none.
        let old = judge(
            &status(&[(POD_NAME, &["proxy"]), (NODE_NAME, &["one", "two"])]),
            &claimed(),
            "culvert.dev",
        );
        assert_eq!(old.unwrap().node, None);
    }

    #[test]
    fn what_the_api_server_does_not_vouch_for_is_refused() {
        let judged = |change: fn(&mut TokenReviewStatus)| {
            let mut status = status(&[]);
            change(&mut status);
            judge(&status, &claimed(), "culvert.dev").unwrap_err()
        };
        let refused = judged(|status| {
            (status.authenticated, status.error) =
                (Some(false), Some("token has been invalidated".to_owned()));
        });
        assert_eq!(refused, TokenError::NotAuthenticated("token has been invalidated".to_owned()));
        assert!(matches!(judged(|status| status.authenticated = None), TokenError::NotAuthenticated(_)));
        assert_eq!(judged(|status| status.audiences = None), TokenError::Audience);
        assert_eq!(judged(|status| status.audiences = Some(vec!["other".to_owned()])), TokenError::Audience);
        let stranger = judged(|status| status.user.as_mut().unwrap().username = Some("admin".to_owned()));
        assert_eq!(stranger, TokenError::Subject);
    }
}
