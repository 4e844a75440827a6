import pg from 'pg';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { held, refusal } from '../e2e/support.ts';
import { access, openRoot, startEstate, type Estate } from './support.ts';

let estate: Estate;
beforeAll(async () => {
  estate = await startEstate('contention');
});
afterAll(() => estate.stop());

test('a close that takes long holds up its own tasks and no others, and what it holds up is refused then', async () => {
  const [slow, other] = [await openRoot(estate, 'lead'), await openRoot(estate, 'lead')];
  const issue = (taskId: string) => estate.credentials('agent/lead/1').issueCredential({ taskId, ...access.reports });
  for (const { taskId } of [slow, other]) await issue(taskId);
  const client = new pg.Client({ connectionString: estate.estate.databaseUrl });
  await client.connect();
  try {
    // As a close of a large tree does: the row is held until all of it is done.
    await client.query('BEGIN');
    await client.query('SELECT FROM leasehold.tasks WHERE task_id = $1 FOR UPDATE', [slow.taskId]);
    const waiting = issue(slow.taskId);
    waiting.catch(() => undefined);
    for (let n = 0; n < 20; n++) held(await issue(other.taskId));
    await client.query(
      `UPDATE leasehold.tasks SET state = 'closing', closed_at = now(), epoch = epoch + 1, close_cause = 'requested'
       WHERE task_id = $1`,
      [slow.taskId],
    );
    await client.query('COMMIT');
    expect(await refusal(waiting)).toMatchObject({ reason: 'TASK_CLOSED' });
  } finally {
    await client.end();
  }
});

test('what was only held up is written then', async () => {
  const root = await openRoot(estate, 'lead');
  const client = new pg.Client({ connectionString: estate.estate.databaseUrl });
  await client.connect();
  try {
    await client.query('BEGIN');
    await client.query('SELECT FROM leasehold.tasks WHERE task_id = $1 FOR UPDATE', [root.taskId]);
    const waiting = estate.credentials('agent/lead/1').issueCredential({ taskId: root.taskId, ...access.warehouse });
    waiting.catch(() => undefined);
    await client.query('SELECT pg_sleep(0.2)');
    await client.query('ROLLBACK');
    held(await waiting);
  } finally {
    await client.end();
  }
});
