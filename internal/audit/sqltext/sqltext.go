// Package sqltext writes what stores that are SQL databases ask alike.
//
// In: a query and how the database numbers arguments. Out: a statement over table records (n, data, at, act, user, cluster, object, policy, name) and its arguments. It must not
// put anything of a query into the statement itself.
package sqltext

import (
	"strings"

	"ambitmesh.dev/ambit/internal/audit"
)

// Select gives the statement that reads n and data of the records that answer q, in the order asked for. place writes the place of argument i, counted from 1.
func Select(q audit.Query, place func(i int) string) (string, []any) {
	var where []string
	var args []any
	add := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "\x00", place(len(args)), 1)
		}
		where = append(where, condition)
	}
	from, to := q.Times()
	for _, c := range []struct{ condition, value string }{
		{"at >= \x00", from},
		{"at < \x00", to},
		{"act = \x00", string(q.Act)},
		{`"user" = ` + "\x00", q.User},
		{"cluster = \x00", q.Cluster},
		{"object = \x00", q.Object},
		{"policy = \x00", q.Policy},
	} {
		if c.value != "" {
			add(c.condition, c.value)
		}
	}
	if q.Object != "" { // the index is on the name
		add("name = \x00", q.Object[strings.Index(q.Object, "/")+1:])
	}
	if q.Name != "" {
		add("n IN (SELECT n FROM records WHERE name = \x00 UNION SELECT n FROM records WHERE cluster = \x00)", q.Name, q.Name)
	}
	if q.After > 0 {
		add("n >= \x00", q.After)
	}
	if q.Before > 0 {
		add("n < \x00", q.Before)
	}
	statement := "SELECT n, data FROM records"
	if len(where) > 0 {
		statement += " WHERE " + strings.Join(where, " AND ")
	}
	statement += " ORDER BY n"
	if q.Last {
		statement += " DESC"
	}
	if q.Limit > 0 {
		args = append(args, q.Limit)
		statement += " LIMIT " + place(len(args))
	}
	return statement, args
}
