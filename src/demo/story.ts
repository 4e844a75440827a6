import { timestampDate } from '@bufbuild/protobuf/wkt';
import type { Client } from '@connectrpc/connect';
import type pg from 'pg';
import { TimelineStep, type AuditService } from '../gen/leasehold/v1/audit_service_pb.js';
import { Effect, LeaseOutcome, TaskState, Tier, type Lease } from '../gen/leasehold/v1/common_pb.js';
import type { CredentialService, PostgresLogin } from '../gen/leasehold/v1/credential_service_pb.js';
import type { TaskService } from '../gen/leasehold/v1/task_service_pb.js';
import { ToolCallOutcome, Voucher, type ToolCallService } from '../gen/leasehold/v1/tool_call_service_pb.js';
import { call, connect, eventually, expiry, lockedOut, refusal } from './hands.ts';
import { insist, type Teller } from './teller.ts';

export interface Cast {
  orchestrator: Client<typeof TaskService>;
  agent: Client<typeof CredentialService>;
  /** The agent too. */
  calls: Client<typeof ToolCallService>;
  auditor: Client<typeof AuditService>;
  toolUrl: string;
}

const wanted = [
  { tool: 'reports', tier: Tier.READ },
  { tool: 'warehouse', tier: Tier.READ },
  { tool: 'warehouse', tier: Tier.WRITE },
];

/** The life of one task. Every step asks the tool or the database itself, never only the broker. */
export async function tellStory(teller: Teller, { orchestrator, agent, calls, auditor, toolUrl }: Cast): Promise<void> {
  const { taskId } = await teller.step(
    'open-task',
    'The orchestrator opens a task before it dispatches it, and sees at once what the task may do.',
    async () => {
      const { task, plan } = await orchestrator.openTask({
        requestId: crypto.randomUUID(),
        intent: 'Summarise the orders of the quarter',
        agent: 'analyst',
        tools: wanted,
      });
      const allowed = plan
        .filter((entry) => entry.effect === Effect.ALLOW)
        .map((entry) => `${entry.tool}:${Tier[entry.tier]}`);
      insist(
        allowed.join() === 'reports:READ,warehouse:READ',
        `both reads allowed, the write not; got ${allowed.join()}`,
      );
      return {
        taskId: task!.taskId,
        plan: plan.map((entry) => ({
          access: `${entry.tool}:${Tier[entry.tier].toLowerCase()}`,
          effect: Effect[entry.effect].toLowerCase(),
          ttl: entry.ttl === undefined ? '' : `${entry.ttl.seconds} s`,
          reason: entry.reason,
        })),
      };
    },
  );

  const ask = (tool: string, tier: Tier) =>
    agent.issueCredential({ requestId: crypto.randomUUID(), taskId, tool, tier, justification: 'quarterly summary' });

  let token = '';
  let tokenLease = '';
  await teller.step(
    'issue-token',
    'The agent gets a token for one tool; the tool verifies it by JWKS and accepts it.',
    async () => {
      const { credential } = await ask('reports', Tier.READ);
      insist(credential?.material.case === 'accessToken', 'an access token');
      token = credential.material.value.token;
      tokenLease = credential.lease!.leaseId;
      const { status, body } = await call(toolUrl, token);
      insist(status === 200, `the tool accepts the token; it said ${status} ${body}`);
      return { lease: tokenLease, expires: expiry(credential.lease!), tool: `${status} ${body}` };
    },
  );

  await teller.step(
    'record-call',
    'The agent records its call, and the tool attests what it saw: two words on one call.',
    async () => {
      const begin = { taskId, leaseId: tokenLease, action: 'reports.read', arguments: { report: 'quarterly' } };
      const { call: own } = await calls.beginToolCall({ requestId: crypto.randomUUID(), ...begin });
      const { status } = await call(toolUrl, token, own!.callId);
      insist(status === 200, `the tool accepts the token, not ${status}`);
      const outcome = ToolCallOutcome.SUCCEEDED;
      await calls.endToolCall({ requestId: crypto.randomUUID(), callId: own!.callId, outcome });
      const seen = await eventually(async () => {
        const { calls: all } = await calls.listToolCalls({ taskId });
        return all.find((one) => one.aboutCallId === own!.callId);
      });
      insist(seen.violations.length === 0, 'nothing to raise');
      insist(seen.argumentsDigest === own!.argumentsDigest, 'both name the same arguments');
      return {
        call: own!.callId,
        attested: `${seen.callId} by ${seen.reportedBy}`,
        target: seen.target['resource'],
        effect: seen.effect?.objects.join(),
      };
    },
  );

  let login: PostgresLogin;
  let loginLease = '';
  let session: pg.Client;
  await teller.step(
    'issue-login',
    'The agent gets a database login made on the spot, and really reads with it.',
    async () => {
      const { credential } = await ask('warehouse', Tier.READ);
      insist(credential?.material.case === 'postgresLogin', 'a database login');
      login = credential.material.value;
      loginLease = credential.lease!.leaseId;
      session = await connect(login);
      const { rows } = await session.query<{ n: string; total: string }>(
        'SELECT count(*) AS n, sum(total) AS total FROM orders',
      );
      return {
        lease: credential.lease!.leaseId,
        login: login.username,
        expires: expiry(credential.lease!),
        read: `${rows[0]!.n} orders, total ${rows[0]!.total}`,
      };
    },
  );

  await teller.step(
    'record-query',
    'It records the query; where it went, the broker knows from the lease.',
    async () => {
      const { call: recorded } = await calls.recordToolCall({
        call: { requestId: crypto.randomUUID(), taskId, leaseId: loginLease, action: 'select' },
        outcome: ToolCallOutcome.SUCCEEDED,
        effect: { objects: ['table:orders'] },
      });
      insist(recorded?.target['role'] === login.username, 'the target is the login of the lease');
      return { call: recorded.callId, target: recorded.target, raised: recorded.violations.length };
    },
  );

  await teller.step('cannot-write', 'The same login cannot write: the database itself refuses.', async () => {
    const code = await session.query(`INSERT INTO orders (customer, total) VALUES ('x', 1)`).then(
      () => 'accepted',
      (error: { code?: string }) => error.code ?? 'unknown',
    );
    insist(code === '42501', `SQLSTATE 42501 (insufficient privilege), got ${code}`);
    return { database: 'SQLSTATE 42501, insufficient privilege' };
  });

  await teller.step('deny-write', 'Asking the broker for write is denied, with the reason.', async () => {
    return { refused: await refusal(ask('warehouse', Tier.WRITE), 'denied') };
  });

  await teller.step(
    'renew',
    'The token is renewed: a new decision, a new credential, never past the deadline.',
    async () => {
      const { credential } = await agent.renewCredential({ requestId: crypto.randomUUID(), leaseId: tokenLease });
      insist(credential?.material.case === 'accessToken', 'an access token');
      token = credential.material.value.token;
      const { status } = await call(toolUrl, token);
      insist(status === 200, `the tool accepts the renewed token, not ${status}`);
      return { lease: credential.lease!.leaseId, renews: tokenLease, tool: status };
    },
  );

  let leases: Lease[] = [];
  await teller.step(
    'close',
    'The orchestrator closes the task and waits until every credential is settled.',
    async () => {
      const closed = await orchestrator.closeTask({
        requestId: crypto.randomUUID(),
        taskId,
        justification: 'done',
        wait: true,
      });
      leases = closed.leases;
      insist(closed.task?.state === TaskState.CLOSED, `state closed, got ${TaskState[closed.task?.state ?? 0]}`);
      return { state: TaskState[closed.task.state].toLowerCase(), leases: leases.length };
    },
  );

  await teller.step('login-refused', 'The login is gone from the database, and its open session with it.', async () => {
    return await lockedOut(session, login);
  });

  await teller.step(
    'token-refused',
    'The tool follows the revocation feed and refuses the token, long before it expires.',
    async () => {
      // The feed is pushed; a tool learns of a close within moments.
      let answer = await call(toolUrl, token);
      for (let tries = 0; answer.status === 200 && tries < 50; tries++) {
        await new Promise((resolve) => setTimeout(resolve, 100));
        answer = await call(toolUrl, token);
      }
      insist(answer.status === 401, `401 from the tool, got ${answer.status}`);
      return { tool: `${answer.status} ${answer.body}` };
    },
  );

  await teller.step('issue-after-close', 'Nothing more is issued for the task.', async () => {
    return { refused: await refusal(ask('reports', Tier.READ), 'ended') };
  });

  await teller.step('outcomes', 'What became of each credential.', () => {
    insist(
      leases.every((lease) => lease.outcome === LeaseOutcome.REVOKED),
      'every lease is revoked',
    );
    return Promise.resolve({
      leases: leases.map((lease) => ({
        lease: lease.leaseId,
        access: `${lease.tool}:${Tier[lease.tier].toLowerCase()}`,
        outcome: LeaseOutcome[lease.outcome].toLowerCase(),
        settled: lease.settleTime === undefined ? '' : timestampDate(lease.settleTime).toISOString(),
      })),
    });
  });

  await teller.step('audit', 'The auditor reads who did what, and why.', async () => {
    const { events } = await auditor.listAuditEvents({ taskId });
    const kinds = new Set(events.map((event) => event.kind));
    for (const kind of [
      'task.opened',
      'decision.made',
      'lease.issued',
      'lease.denied',
      'lease.renewed',
      'task.closed',
      'lease.settled',
    ]) {
      insist(kinds.has(kind), `an event ${kind}`);
    }
    return {
      events: events.map((event) => ({
        kind: event.kind,
        actor: event.actor,
        tool: event.detail?.['tool'],
        tier: event.detail?.['tier'],
        effect: typeof event.detail?.['effect'] === 'string' ? event.detail['effect'] : '',
        outcome: event.detail?.['outcome'],
      })),
    };
  });

  await teller.step(
    'timeline',
    'And the whole of it at a glance: what happened, in order, and whose word it is.',
    async () => {
      const { entries } = await auditor.listTimeline({ taskId, pageSize: 1_000 });
      const steps = new Set(entries.map((entry) => entry.step));
      for (const step of ['INTENT', 'DECISION', 'CREDENTIAL', 'CALL', 'EFFECT', 'SETTLEMENT'] as const) {
        insist(steps.has(TimelineStep[step]), `an entry of step ${step.toLowerCase()}`);
      }
      insist(
        entries.some((entry) => entry.voucher === Voucher.TARGET_ATTESTED),
        'an entry that the tool vouches for',
      );
      return {
        timeline: entries.map((entry) => ({
          step: TimelineStep[entry.step].toLowerCase(),
          voucher: Voucher[entry.voucher].toLowerCase(),
          what: entry.summary,
        })),
      };
    },
  );
}
