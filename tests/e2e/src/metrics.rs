//! Samples in the text format of Prometheus.

/// One reading of `/metrics`.
#[derive(Debug, Default)]
pub struct Metrics(Vec<Sample>);

#[derive(Debug)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Lines that are no samples are passed over.
    pub fn parse(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect())
    }

    /// Sum of all series of that name that have all of these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// Number of such series.
    pub fn series(&self, name: &str, labels: &[(&str, &str)]) -> usize {
        self.matching(name, labels).count()
    }

    /// Every name that occurs.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|sample| sample.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The label names of the first series of that name.
    pub fn labels_of(&self, name: &str) -> Vec<&str> {
        let first = self.0.iter().find(|sample| sample.name == name);
        first.map(|sample| sample.labels.iter().map(|(key, _)| key.as_str()).collect()).unwrap_or_default()
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.0.iter().filter(move |sample| {
            let has = |(key, value): &(&str, &str)| sample.labels.iter().any(|(k, v)| k == key && v == value);
            sample.name == name && labels.iter().all(has)
        })
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = series.split_once('{') else {
        return Some(Sample { name: series.to_owned(), labels: Vec::new(), value });
    };
    let mut labels = Vec::new();
    let mut rest = rest.strip_suffix('}')?;
    while let Some((key, tail)) = rest.split_once("=\"") {
        let end = closing_quote(tail)?;
        labels.push((key.trim_start_matches(',').to_owned(), tail[..end].replace("\\\"", "\"")));
        rest = &tail[end + 1..];
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_their_labels() {
        let metrics =
            Metrics::parse("# HELP a b\na{x=\"1\",y=\"z,\\\"}\"} 2\na{x=\"1\"} 3\na{x=\"2\"} 4\nb 7\n");
        assert_eq!(metrics.sum("a", &[("x", "1")]), 5.0);
        assert_eq!(metrics.sum("a", &[]), 9.0);
        assert_eq!(metrics.sum("a", &[("y", "z,\"}")]), 2.0);
        assert_eq!(metrics.sum("b", &[]), 7.0);
        assert_eq!(metrics.series("a", &[("x", "1")]), 2);
        assert_eq!(metrics.names(), ["a", "b"]);
    }
}
