package chart

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// who are the rows of the table, by the name of their role.
var who = map[string]string{
	"culvert-controller": "controller",
	"culvert-ca":         "CA",
	"culvert-node-proxy": "node proxy",
	"culvert-cni":        "CNI plugin (`culvert-cni`)",
	"culvert-uninstall":  "uninstall",
}

type row struct{ what, verbs []string }

var words = regexp.MustCompile(`[a-z0-9/-]+`)

// documented reads the table "Rights" of docs/operations.md: every word of what and verbs.
func documented(t *testing.T) map[string][]row {
	t.Helper()
	rows := map[string][]row{}
	_, table, found := strings.Cut(read(t, "docs/operations.md"), "### Rights")
	if !found {
		t.Fatal("docs/operations.md has no part on rights")
	}
	table, _, _ = strings.Cut(table, "\n#")
	for _, line := range strings.Split(table, "\n") {
		cells := strings.Split(strings.Trim(line, "| "), " | ")
		if len(cells) != 4 || cells[0] == "who" {
			continue
		}
		what := strings.ReplaceAll(cells[1], "all route kinds", "grpcroutes httproutes tcproutes tlsroutes udproutes")
		what = strings.ReplaceAll(what, "`/status` of those", "status")
		rows[cells[0]] = append(rows[cells[0]], row{words.FindAllString(what, -1), words.FindAllString(cells[2], -1)})
	}
	return rows
}

// names says whether a row is about a resource.
func (r row) names(resource string) bool {
	_, subresource, _ := strings.Cut(resource, "/")
	if subresource == "status" {
		return slices.Contains(r.what, "status") || slices.Contains(r.verbs, "/status")
	}
	return slices.Contains(r.what, resource)
}

func TestRightsAreThoseOfTheManual(t *testing.T) {
	table := documented(t)
	granted := map[string]map[string]bool{}
	for _, role := range rendered(t) {
		if !strings.HasSuffix(role.text("kind"), "Role") || who[role.text("metadata", "name")] == "" {
			continue
		}
		program := who[role.text("metadata", "name")]
		if granted[program] == nil {
			granted[program] = map[string]bool{}
		}
		for _, item := range role.list("rules") {
			rule := object(item.(map[string]any))
			for _, resource := range rule.list("resources") {
				granted[program][resource.(string)] = true
				for _, verb := range rule.list("verbs") {
					said := slices.ContainsFunc(table[program], func(r row) bool {
						return r.names(resource.(string)) && slices.Contains(r.verbs, verb.(string))
					})
					if !said {
						t.Errorf("docs/operations.md does not say that %s may %s %s", program, verb, resource)
					}
				}
				for _, name := range rule.list("resourceNames") {
					if !strings.Contains(read(t, "docs/operations.md"), "`"+name.(string)+"`") {
						t.Errorf("docs/operations.md does not name %s", name)
					}
				}
			}
		}
	}
	known := func(resource string) bool {
		for _, resources := range granted {
			if resources[resource] {
				return true
			}
		}
		return false
	}
	for program, rows := range table {
		for _, r := range rows {
			for _, word := range r.what {
				if known(word) && !granted[program][word] {
					t.Errorf("docs/operations.md says that %s may %v %s, and no role of the chart does", program, r.verbs, word)
				}
			}
			if !slices.ContainsFunc(r.what, func(word string) bool { return known(word) || word == "status" }) {
				t.Errorf("docs/operations.md says of %s: %v, which is no resource of any role", program, r.what)
			}
		}
	}
	if len(granted) != len(who) {
		t.Errorf("roles of %v", granted)
	}
}

// Somebody with a persona's role must not be able to make more of it.
func TestPersonasCannotTouchTheMeshsPrograms(t *testing.T) {
	personas := 0
	for _, role := range rendered(t) {
		if role.text("kind") != "ClusterRole" || who[role.text("metadata", "name")] != "" {
			continue
		}
		personas++
		for _, item := range role.list("rules") {
			for _, group := range object(item.(map[string]any)).list("apiGroups") {
				if !strings.HasPrefix(group.(string), "gateway.networking.") && group != "culvert.dev" {
					t.Errorf("%s reaches into %q", role.name(), group)
				}
			}
		}
	}
	if personas < 3 {
		t.Errorf("%d roles of people", personas)
	}
}
