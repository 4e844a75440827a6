-- What a lease is bound to beside its life: the arguments that its agent declared, limits on those that it did not, and
-- when it may be renewed. NULL for nearly all; the previous release writes none.
ALTER TABLE leasehold.leases ADD COLUMN terms jsonb;

-- What a task's tree holds or has held: its tasks, then their leases by the primary key's neighbour (tenant, task_id, …).
CREATE INDEX tasks_tree ON leasehold.tasks (tenant, root_task_id);
-- How many credentials an agent, or a tool, was issued within a window. Renewals are not counted.
CREATE INDEX leases_of_agent ON leasehold.leases (tenant, agent, issued_at) WHERE renewed_from IS NULL;
CREATE INDEX leases_of_tool ON leasehold.leases (tenant, tool, issued_at) WHERE renewed_from IS NULL;
