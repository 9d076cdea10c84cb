package sqlite

import "database/sql"

// WriteDB is the connection that writes.
func (s *Store) WriteDB() *sql.DB { return s.write }
