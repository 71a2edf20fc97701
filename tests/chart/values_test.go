package chart

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const valuesPage = "docs/values.md"

const valuesHead = `# Values of the chart

<!-- Generated from deploy/helm/culvert/values.yaml: ` + "`UPDATE_GOLDEN=1 tests/chart/run`" + `. -->

How to install it is in [install.md](install.md). Values that are not here, or mean nothing, are refused by name.

| value | default | what it is |
|---|---|---|
`

// The page has a line for every value: its name, its default, and the comment above it.
func TestEveryValueIsExplained(t *testing.T) {
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(read(t, "deploy/helm/culvert/values.yaml")), &document); err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	page.WriteString(valuesHead)
	explain(t, &page, "", document.Content[0])
	path := filepath.Join(repository, valuesPage)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(path, []byte(page.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, valuesPage) != page.String() {
		t.Errorf("%s is not what values.yaml says; UPDATE_GOLDEN=1 writes it", valuesPage)
	}
}

// A group is a mapping without a comment, or with fields that have comments of their own.
func explain(t *testing.T, page *strings.Builder, prefix string, values *yaml.Node) {
	t.Helper()
	for at := 0; at+1 < len(values.Content); at += 2 {
		key, value := values.Content[at], values.Content[at+1]
		name, comment := prefix+key.Value, key.HeadComment
		if value.Kind == yaml.MappingNode && len(value.Content) > 0 && (comment == "" || explained(value)) {
			explain(t, page, name+".", value)
			continue
		}
		if comment == "" {
			t.Errorf("values.yaml does not say what %s is", name)
		}
		// Blank lines part comments on a group from those on its first value.
		parts := strings.Split(comment, "\n\n")
		what := strings.ReplaceAll(strings.ReplaceAll(parts[len(parts)-1], "\n# ", " "), "# ", "")
		fmt.Fprintf(page, "| `%s` | `%s` | %s |\n", name, inline(t, value), strings.ReplaceAll(what, "|", `\|`))
	}
}

func explained(value *yaml.Node) bool {
	for at := 0; at < len(value.Content); at += 2 {
		if value.Content[at].HeadComment != "" {
			return true
		}
	}
	return false
}

// inline is a value on one line.
func inline(t *testing.T, value *yaml.Node) string {
	t.Helper()
	value = copied(value)
	value.Style = yaml.FlowStyle
	text, err := yaml.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(strings.ReplaceAll(string(text), "\n", " "))
}

// copied is a value without its comments.
func copied(value *yaml.Node) *yaml.Node {
	one := *value
	one.HeadComment, one.LineComment, one.FootComment = "", "", ""
	one.Content = nil
	for _, part := range value.Content {
		one.Content = append(one.Content, copied(part))
	}
	return &one
}
