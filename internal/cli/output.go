package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is how a result is printed.
type format string

const (
	formatTable format = "table"
	formatWide  format = "wide"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// formatFlag adds -o with the formats a verb has.
func formatFlag(cmd *cobra.Command, value *string, allowed ...format) {
	names := make([]string, len(allowed))
	for i, f := range allowed {
		names[i] = string(f)
	}
	cmd.Flags().StringVarP(value, "output", "o", "", "output: "+strings.Join(names, ", "))
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
}

// parseFormat checks the value of -o.
func parseFormat(value string, allowed ...format) (format, error) {
	if value == "" {
		return formatTable, nil
	}
	names := make([]string, len(allowed))
	for i, f := range allowed {
		if string(f) == value {
			return f, nil
		}
		names[i] = string(f)
	}
	return "", usageError("-o %q: want one of %s", value, strings.Join(names, ", "))
}

// printDocument writes v as JSON or YAML.
func printDocument(w io.Writer, f format, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	raw = append(raw, '\n')
	if f == formatYAML {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return fmt.Errorf("encode the result: %w", err)
		}
	}
	_, err = w.Write(raw)
	return err
}

// printTable writes columns as kubectl does: upper-case heads, three spaces between columns, nothing after the last.
func printTable(w io.Writer, indent string, head []string, rows [][]string) {
	width := make([]int, len(head))
	for _, row := range append([][]string{head}, rows...) {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	for _, row := range append([][]string{head}, rows...) {
		var line strings.Builder
		line.WriteString(indent)
		for i, cell := range row {
			line.WriteString(cell)
			line.WriteString(strings.Repeat(" ", width[i]-len([]rune(cell))+3))
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// none stands for an empty cell.
func none(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
