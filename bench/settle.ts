import { setTimeout as sleep } from 'node:timers/promises';
import type { Estate } from './estate.ts';

const patience = 120_000;
const rolesAtOnce = 200;

/** Waits until the broker has nothing left to settle, so that one slice's work does not weigh on the next. */
export async function quiet(estate: Estate): Promise<void> {
  const until = Date.now() + patience;
  for (;;) {
    const { rows } = await estate.database.query<{ busy: boolean }>(
      `SELECT EXISTS (SELECT FROM leases WHERE state <> 'settled' AND settle_at < now() + interval '5 s')
        OR EXISTS (SELECT FROM tasks WHERE closed_at IS NOT NULL AND settled_at IS NULL) AS busy`,
    );
    if (!rows[0]!.busy) return;
    if (Date.now() > until) throw new Error(`the broker did not settle its leases within ${patience / 1_000} s`);
    await sleep(50);
  }
}

/** Ground truth, asked of the database: each answer stands for a lease and its two events. */
export async function checkIssued(estate: Estate, tasks: readonly string[], answers: number): Promise<void> {
  const { rows } = await estate.database.query<{ leases: number; decided: number; issued: number }>(
    `SELECT (SELECT count(*)::int FROM leases WHERE task_id = ANY($1) AND state = 'active') AS leases,
      count(*) FILTER (WHERE kind = 'decision.made')::int AS decided, count(*) FILTER (WHERE kind = 'lease.issued')::int AS issued
     FROM audit_events WHERE task_id = ANY($1)`,
    [tasks],
  );
  const { leases, decided, issued } = rows[0]!;
  if (leases !== answers || decided !== answers || issued !== answers) {
    throw new Error(
      `${answers} credentials were answered, but there are ${leases} leases, ${decided} decisions and ${issued} issues on record`,
    );
  }
}

/** Ground truth, asked of the database: each record has its end, its event, and fits what was granted. */
export async function checkRecorded(estate: Estate, taskId: string, answers: number): Promise<void> {
  const { rows } = await estate.database.query<{ ended: number; raised: number; events: number; counted: number }>(
    `SELECT count(*) FILTER (WHERE outcome = 'succeeded')::int AS ended, count(*) FILTER (WHERE violations <> '{}')::int AS raised,
      (SELECT count(*)::int FROM audit_events WHERE task_id = $1 AND kind IN ('call.recorded', 'call.ended')) AS events,
      (SELECT recorded FROM tool_call_counts WHERE task_id = $1) AS counted
     FROM tool_calls WHERE task_id = $1`,
    [taskId],
  );
  const { ended, raised, events, counted } = rows[0]!;
  if (ended !== answers || events !== answers || counted !== answers || raised > 0) {
    throw new Error(
      `${answers} calls were answered, but ${ended} are on record with ${events} events, counted as ${counted}, ${raised} raised`,
    );
  }
}

/** Logins that Vault made for the benchmark: dropped in bulk, so that Vault has only to look. */
export const vaultMade = 'v-w_[a-z0-9_]+-read-';

/** Roles of the benchmark's own making only, told by their prefix and digits. */
export async function dropRoles(estate: Estate, prefix: 'bench_' | 'lh_' | typeof vaultMade): Promise<void> {
  for (;;) {
    const { rows } = await estate.target.query<{ name: string }>(
      `SELECT quote_ident(rolname) AS name FROM pg_roles WHERE rolname ~ ('^' || $1 || '[0-9a-z]+$') LIMIT ${rolesAtOnce}`,
      [prefix],
    );
    if (rows.length === 0) return;
    await estate.target.query(`DROP ROLE ${rows.map(({ name }) => name).join(', ')}`);
  }
}
