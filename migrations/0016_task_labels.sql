-- What a task belongs to, as its opener stated it. A default that is a constant rewrites no rows, and the previous release,
-- which does not name the column, writes tasks without labels.
ALTER TABLE leasehold.tasks ADD COLUMN labels jsonb NOT NULL DEFAULT '{}';
