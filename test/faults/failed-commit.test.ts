import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { createEstate, startInProcess, type TestEstate } from '../support/broker.ts';
import { asSuperuser } from '../support/postgres.ts';
import {
  brokerRows,
  callers,
  eventually,
  expectSettled,
  leasesOf,
  loginOf,
  openTask,
  ordersSeenBy,
  refusalOf,
  reportsRead,
  rolesOf,
  warehouseRead,
} from './support.ts';

let estate: TestEstate;
let broker: Awaited<ReturnType<typeof startInProcess>>;
beforeAll(async () => {
  estate = await createEstate('commit');
  broker = await startInProcess(estate);
});
afterAll(async () => {
  await broker?.stop();
  await estate?.remove();
});

/** Statements of the superuser; the broker's own login could not. */
async function sabotage(sql: string): Promise<void> {
  await asSuperuser(estate.databaseUrl, async (client) => {
    await client.query(`SET search_path = leasehold; ${sql}`);
  });
}

const failOnce = (when: string, act: string, trigger: string) => `
  CREATE SEQUENCE fault;
  CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = leasehold AS $$
    BEGIN IF ${when} AND nextval('fault') = 1 THEN ${act}; END IF; RETURN NEW; END $$;
  ${trigger}`;
const raise = `RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'`;

afterEach(() =>
  sabotage(
    'DROP TRIGGER IF EXISTS fault ON audit_events; DROP TRIGGER IF EXISTS fault ON leases; DROP FUNCTION IF EXISTS fault; DROP SEQUENCE IF EXISTS fault',
  ),
);

/** Fault 4: the provider has made the credential, and recording it fails. */
const onIssued = `NEW.kind = 'lease.issued'`;
test.for([
  [
    'the audit event',
    failOnce(
      onIssued,
      raise,
      'CREATE TRIGGER fault BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fault()',
    ),
  ],
  [
    'the lease',
    failOnce(
      `NEW.state = 'active'`,
      raise,
      'CREATE TRIGGER fault BEFORE UPDATE ON leases FOR EACH ROW EXECUTE FUNCTION fault()',
    ),
  ],
  [
    'the commit itself',
    failOnce(
      onIssued,
      raise,
      'CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON audit_events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fault()',
    ),
  ],
  [
    'the connection',
    failOnce(
      onIssued,
      'PERFORM pg_terminate_backend(pg_backend_pid())',
      'CREATE TRIGGER fault BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fault()',
    ),
  ],
] as const)('when %s fails, the login is revoked and never returned', async ([, sql]) => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  const request = { requestId: crypto.randomUUID(), taskId, ...warehouseRead };
  await sabotage(sql);

  expect(await refusalOf(agent.issueCredential(request))).toMatchObject({
    code: 'Unavailable',
    reason: 'STORAGE_UNAVAILABLE',
  });
  const [failed] = await leasesOf(estate, taskId);
  expect(failed).toMatchObject({ settle_cause: 'abandoned' });
  await eventually(async () => {
    expect((await leasesOf(estate, taskId))[0]).toMatchObject({ state: 'settled', outcome: 'revoked' });
    expect(await rolesOf(estate, [failed!])).toEqual([]);
  });
  expect(
    await brokerRows(estate, `SELECT FROM audit_events WHERE task_id = $1 AND kind = 'lease.issued'`, [taskId]),
  ).toEqual([]);

  const { credential } = await agent.issueCredential(request);
  expect(await ordersSeenBy(loginOf(credential))).toBe(3);
  await orchestrator.closeTask({ taskId, wait: true });
  await expectSettled(estate, taskId);
});

test('when the write of a token’s lease fails, the token is never returned', async () => {
  const { agent } = callers(estate);
  const taskId = await openTask(estate);
  const request = { requestId: crypto.randomUUID(), taskId, ...reportsRead };
  // The pin of the agent comes first and has its own event.
  await agent.issueCredential({ taskId, ...reportsRead });
  await sabotage(
    failOnce(
      onIssued,
      raise,
      'CREATE TRIGGER fault BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fault()',
    ),
  );
  expect(await refusalOf(agent.issueCredential(request))).toMatchObject({
    code: 'Unavailable',
    reason: 'STORAGE_UNAVAILABLE',
  });
  expect(await leasesOf(estate, taskId)).toHaveLength(1);
  await agent.issueCredential(request);
  expect(await leasesOf(estate, taskId)).toHaveLength(2);
});

test('one task’s failing row does not fail the others of its batch', async () => {
  const { agent } = callers(estate);
  const tasks = await Promise.all(Array.from({ length: 8 }, () => openTask(estate)));
  await Promise.all(tasks.map((taskId) => agent.issueCredential({ taskId, ...reportsRead })));
  const [bad] = tasks;
  await sabotage(`
    CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN IF NEW.task_id = '${bad}' THEN ${raise}; END IF; RETURN NEW; END $$;
    CREATE TRIGGER fault BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fault()`);
  const results = await Promise.allSettled(tasks.map((taskId) => agent.issueCredential({ taskId, ...reportsRead })));
  expect(results.map((result) => result.status === 'fulfilled')).toEqual(tasks.map((taskId) => taskId !== bad));
});

/** Fault 18: without audit nothing is issued. */
test.for([
  [
    'read-only',
    'REVOKE INSERT ON audit_events FROM leasehold_broker',
    'GRANT INSERT ON audit_events TO leasehold_broker',
  ],
  [
    'full',
    `CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ${raise}; END $$;
     CREATE TRIGGER fault BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION fault()`,
    'DROP TRIGGER fault ON audit_events',
  ],
])('while the audit table is %s nothing is issued, and afterwards all goes on', async ([, breakIt, mendIt]) => {
  const { agent, orchestrator } = callers(estate);
  const taskId = await openTask(estate);
  const { credential: held } = await agent.issueCredential({ taskId, ...warehouseRead });
  const before = await leasesOf(estate, taskId);
  await sabotage(breakIt!);
  const refused = { code: 'Unavailable', reason: 'STORAGE_UNAVAILABLE' };
  for (const access of [reportsRead, warehouseRead]) {
    expect(await refusalOf(agent.issueCredential({ taskId, ...access }))).toMatchObject(refused);
  }
  expect(await refusalOf(agent.renewCredential({ leaseId: held!.lease!.leaseId }))).toMatchObject(refused);
  expect(await refusalOf(agent.returnCredential({ leaseId: held!.lease!.leaseId }))).toMatchObject(refused);
  expect(await refusalOf(orchestrator.closeTask({ taskId }))).toMatchObject(refused);
  expect(await refusalOf(openTask(estate))).toMatchObject(refused);
  expect(await leasesOf(estate, taskId)).toEqual(before);
  expect(await rolesOf(estate, before)).toHaveLength(1);

  await sabotage(mendIt!);
  await agent.issueCredential({ taskId, ...reportsRead });
  await orchestrator.closeTask({ taskId, wait: true });
  await expectSettled(estate, taskId);
});
