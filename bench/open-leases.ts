import { devWorkload } from '../src/dev/environment.ts';
import type { Estate } from './estate.ts';
import { openTasks } from './scenarios.ts';

/** Open leases of other tasks, put there by SQL: a hundred thousand calls would take longer than what is measured. */
export async function addOpenLeases(estate: Estate, count: number): Promise<void> {
  const perTask = 100;
  const tasks = await openTasks(estate, Math.ceil(count / perTask));
  for (const [n, taskId] of tasks.entries()) {
    await estate.database.query(
      `INSERT INTO leases (tenant, task_id, lease_id, request_id, agent, workload, tool, tier, provider, handle, state,
        revocation_kind, issued_at, expires_at, settle_at, line_started_at, policy_revision, policy_rule)
       SELECT 'default', $1, 'lse_' || replace(gen_random_uuid()::text, '-', ''), gen_random_uuid(), 'analyst', $2, 'reports',
        'read', 'jwt', '', 'active', 'immediate', now(), until, until, now(), 'bench', 'bench'
       FROM generate_series(1, $3) n, LATERAL (SELECT now() + interval '40 min' + n * interval '1 s' AS until)`,
      [taskId, devWorkload('agent/analyst'), Math.min(perTask, count - n * perTask)],
    );
  }
  await estate.database.query('VACUUM ANALYZE leases');
}

/** What the slices themselves issue must not add up, or the smaller number is soon no longer small. */
export async function endLeasesOf(estate: Estate, tasks: readonly string[]): Promise<void> {
  await estate.database.query('DELETE FROM leases WHERE task_id = ANY($1)', [tasks]);
  await estate.database.query('VACUUM leases');
}
