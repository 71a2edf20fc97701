//! Retries that nothing bounds in time.

use culvert_objects::Kind;

use crate::code::Code;
use crate::context::Context;
use crate::finding::Finding;

pub fn find(context: &Context) -> Vec<Finding> {
    let mut findings = Vec::new();
    let routes = context.documents.iter();
    let routes = routes.filter(|of| of.key.as_ref().is_some_and(|key| key.kind == Kind::HttpRoute));
    for document in routes {
        for (index, rule) in document.value["spec"]["rules"].as_array().into_iter().flatten().enumerate() {
            let is_bounded = ["request", "backendRequest"].iter().any(|field| {
                let text = rule["timeouts"][field].as_str().unwrap_or_default();
                text.contains(|c: char| c.is_ascii_digit() && c != '0')
            });
            if rule["retry"].is_object() && !is_bounded {
                let what = "it is retried, and no try has an end of its own: a backend that does not answer is not \
                            tried again, it is waited for";
                let remedy = "set timeouts.backendRequest (of one try) and timeouts.request (of all of them) beside retry";
                findings.push(document.finding(
                    Code::RetryWithoutTimeout,
                    format!("spec.rules[{index}].retry"),
                    what,
                    remedy,
                ));
            }
        }
    }
    findings
}
