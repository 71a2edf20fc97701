// Package conformance is the official conformance suite of the Gateway API as a test binary; all of it, and all of its
// flags, come from its module. See docs/test-cluster.md for how `run` calls it.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) { conformance.RunConformance(t) }
