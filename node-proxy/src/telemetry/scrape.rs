//! Helpers that write one metric.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use super::spec::{Kind, Spec};

/// Label values in the order of the spec's labels.
pub(super) type Values<'a, const N: usize> = [&'a str; N];

/// Starts a metric. The encoder adds `_total` to counters by itself.
pub(super) fn descriptor<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    spec: &Spec,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    let (name, kind) = match spec.kind {
        Kind::Counter => (spec.name.trim_end_matches("_total"), MetricType::Counter),
        Kind::Gauge => (spec.name, MetricType::Gauge),
        Kind::Histogram => (spec.name, MetricType::Histogram),
    };
    encoder.encode_descriptor(name, spec.help.trim_end_matches('.'), None, kind)
}

pub(super) fn counters<'a, const N: usize, V: EncodeCounterValue>(
    encoder: &mut DescriptorEncoder<'_>,
    spec: &Spec,
    samples: impl IntoIterator<Item = (Values<'a, N>, V)>,
) -> Result<(), fmt::Error> {
    let mut metric = descriptor(encoder, spec)?;
    for (values, value) in samples {
        let labels = pairs(spec, values);
        if N == 0 {
            metric.encode_counter::<NoLabelSet, V, u64>(&value, None)?;
        } else {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, V, u64>(&value, None)?;
        }
    }
    Ok(())
}

pub(super) fn gauges<'a, const N: usize, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    spec: &Spec,
    samples: impl IntoIterator<Item = (Values<'a, N>, V)>,
) -> Result<(), fmt::Error> {
    let mut metric = descriptor(encoder, spec)?;
    for (values, value) in samples {
        let labels = pairs(spec, values);
        if N == 0 {
            metric.encode_gauge(&value)?;
        } else {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn pairs<'a, const N: usize>(spec: &Spec, values: Values<'a, N>) -> Vec<(&'static str, &'a str)> {
    debug_assert_eq!(spec.labels.len(), N, "{}", spec.name);
    spec.labels.iter().copied().zip(values).collect()
}
