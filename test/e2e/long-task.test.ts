import { cp } from 'node:fs/promises';
import path from 'node:path';
import { ConnectError } from '@connectrpc/connect';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { devWorkload } from '../../src/dev/environment.ts';
import { ApprovalService, ApprovalState, Verdict } from '../../src/gen/leasehold/v1/approval_service_pb.js';
import type { AuditEvent } from '../../src/gen/leasehold/v1/audit_service_pb.js';
import { Tier } from '../../src/gen/leasehold/v1/common_pb.js';
import type { StreamCredentialResponse } from '../../src/gen/leasehold/v1/credential_service_pb.js';
import { createVerifier, followRevocations } from '../../src/verifier/index.ts';
import type { RevocationFollower } from '../../src/verifier/index.ts';
import { startProcess } from '../support/broker.ts';
import type { Held, Refusal, Served } from './support.ts';
import {
  editPolicy,
  gather,
  held,
  ms,
  openTask,
  parties,
  prepareEstate,
  refusal,
  refusalOf,
  sql,
  tokenOf,
} from './support.ts';

const watch = { tool: 'beacon', tier: Tier.READ };
const trim = { tool: 'beacon', tier: Tier.WRITE };
const keeper = 'approver/kim';

let served: Served;
let feed: RevocationFollower;

beforeAll(async () => {
  const estate = await prepareEstate('long', { approvals: { groups: { keepers: [devWorkload(keeper)] } } });
  await cp(path.join(import.meta.dirname, 'fixtures', 'long-task.yaml'), path.join(estate.policyDir, 'long-task.yaml'));
  const broker = await startProcess(estate);
  served = {
    estate,
    ...parties(estate),
    stop: async () => {
      await broker.stop();
      await estate.remove();
    },
  };
  feed = followRevocations({ baseUrl: estate.httpUrl, token: () => estate.mint('tool/beacon') });
  await feed.ready();
});
afterAll(async () => {
  await feed?.close();
  await served?.stop();
});

/**
 * Lives of seconds instead of minutes: what an investigation does in a night passes here in some twenty seconds, on the
 * clocks of a real broker and a real database.
 */
test('a task that goes on for long renews 200 times, is refused after a change of policy, waits for an approval, and goes on without a gap', async () => {
  const { estate, agent } = served;
  const beacon = createVerifier({
    issuer: estate.httpUrl,
    audience: 'https://beacon.dev.leasehold.test',
    jwks: `${estate.httpUrl}/.well-known/jwks.json`,
    feed,
  });
  const { taskId } = await openTask(served, [watch, trim], { heartbeatInterval: { seconds: 300n } });

  // Beside the line that the agent renews itself, streams that the broker renews when it is time.
  const streams = Array.from({ length: 6 }, () => follow(agent.streamCredential({ taskId, ...trim })));

  const line = [held(await agent.issueCredential({ taskId, ...watch }))];
  const arrivals = [Date.now()];
  const current = () => line.at(-1)!;
  /** Uses the credential at hand, then asks for the next one; what is told when it is refused. */
  const renewOnce = async (): Promise<Refusal | undefined> => {
    expect((await beacon.verify(tokenOf(current()))).taskId).toBe(taskId);
    try {
      line.push(held(await agent.renewCredential({ leaseId: current().lease.leaseId })));
      arrivals.push(Date.now());
      return undefined;
    } catch (error) {
      return await refusal(Promise.reject(error as Error));
    }
  };

  while (line.length <= 200) {
    expect(await renewOnce()).toBeUndefined();
    // A pace at which the line outlives several of its credentials.
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
  await expect
    .poll(() => Math.min(...streams.map(({ items }) => items.length)), { timeout: 20_000 })
    .toBeGreaterThanOrEqual(4);

  // From now on people are asked again after 150 renewals. The agent goes on until it meets that.
  const before = current().lease.policyRevision;
  const changed = editPolicy(served, 'long-task.yaml', (text) =>
    text.replace(
      'renewal: { requireHeartbeat: true }',
      'renewal: { requireHeartbeat: true, approvalAfter: { count: 150 } }\n        approval: { approvers: [keepers] }',
    ),
  );
  let refused: Refusal | undefined;
  while (refused === undefined) {
    refused = await renewOnce();
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
  await changed;
  const last = current();
  expect(refused).toMatchObject({
    code: 'FailedPrecondition',
    reason: 'RENEWAL_REFUSED',
    metadata: {
      rule: 'beacon/watch',
      lives_until: new Date(ms(last.lease.expireTime)).toISOString(),
    },
  });
  expect(refused.message).toContain('asks for approval again after 150 renewals since the first credential');
  // The tool does see which ones have been replaced; the present credential is as good as it was.
  await expect(beacon.verify(tokenOf(line[0]!))).rejects.toMatchObject({ code: 'revoked' });
  await beacon.verify(tokenOf(last));

  const approvalId = refused.metadata['approval']!;
  const waiting = gather(estate.client(ApprovalService, 'agent/analyst').watchApproval({ approvalId }));
  await expect.poll(() => waiting.items.at(-1)?.approval?.state).toBe(ApprovalState.PENDING);
  expect(await renewOnce()).toMatchObject({ reason: 'RENEWAL_REFUSED', metadata: { approval: approvalId } });
  await estate
    .client(ApprovalService, keeper)
    .decideApproval({ approvalId, verdict: Verdict.APPROVE, comment: 'the beacon still blinks' });
  expect(await waiting.ended).toBeUndefined();
  expect(waiting.items.at(-1)?.approval?.state).toBe(ApprovalState.APPROVED);

  const approved = line.length;
  for (let renewal = 0; renewal < 20; renewal++) expect(await renewOnce()).toBeUndefined();
  expect(line[approved]!.lease.renewedFromLeaseId).toBe(last.lease.leaseId);
  expect(line[approved]!.lease.policyRevision).not.toBe(before);

  // The streams never needed the approval. What they are refused in the end, they say.
  await editPolicy(served, 'long-task.yaml', (text) => text.replace('tiers: [write]', 'tiers: [read]'));
  for (const { ended } of streams) {
    expect(refusalOf((await ended)!)).toMatchObject({ code: 'FailedPrecondition', reason: 'RENEWAL_REFUSED' });
  }

  expect(line.length).toBeGreaterThan(220);
  for (const one of [{ items: line, arrivals }, ...streams]) await assertNoGap(one);
  await assertAudited(taskId, line, approvalId);
});

function follow(stream: AsyncIterable<StreamCredentialResponse>): Line & { ended: Promise<ConnectError | undefined> } {
  const line: Line = { items: [], arrivals: [] };
  const ended = (async () => {
    try {
      for await (const item of stream) {
        line.arrivals.push(Date.now());
        line.items.push(held(item));
      }
      return undefined;
    } catch (error) {
      return ConnectError.from(error);
    }
  })();
  return { ...line, ended };
}

interface Line {
  items: Held[];
  /** When the agent had each of them in its hand. */
  arrivals: number[];
}

/** Each credential was in the agent's hand before the one before it ended, by its own time or because it was replaced. */
async function assertNoGap({ items, arrivals }: Line): Promise<void> {
  const rows = (await sql(
    served.estate.databaseUrl,
    `SELECT lease_id, renewal_count, issued_at, least(expires_at, settled_at) AS ended_at
       FROM leasehold.leases WHERE lease_id = ANY ($1) ORDER BY renewal_count`,
    [items.map(({ lease }) => lease.leaseId)],
  )) as { lease_id: string; renewal_count: number; issued_at: Date; ended_at: Date }[];
  expect(rows.map(({ lease_id: id }) => id)).toEqual(items.map(({ lease }) => lease.leaseId));
  expect(rows.map(({ renewal_count: count }) => Number(count))).toEqual(items.map((_, index) => index));
  const gaps = items.slice(1).flatMap(({ lease }, index) => {
    expect(lease.renewedFromLeaseId).toBe(rows[index]!.lease_id);
    const gap = Math.max(arrivals[index + 1]!, rows[index + 1]!.issued_at.getTime()) - rows[index]!.ended_at.getTime();
    return gap > 0 ? [{ renewal: index + 1, gap }] : [];
  });
  expect(gaps).toEqual([]);
}

/** Each renewal is a decision with its own event, reason and revision; so is each refusal. */
async function assertAudited(taskId: string, line: readonly Held[], approvalId: string): Promise<void> {
  const events: AuditEvent[] = [];
  let pageToken = '';
  do {
    const page = await served.audit.listAuditEvents({ taskId, pageSize: 500, pageToken });
    events.push(...page.events);
    pageToken = page.nextPageToken;
  } while (pageToken !== '');
  const ofKind = (kind: string) => events.filter((event) => event.kind === kind);
  const renewed = new Set(ofKind('lease.renewed').map(({ leaseId }) => leaseId));
  const decided = new Map(ofKind('decision.made').map((event) => [event.leaseId, event]));
  for (const [index, { lease }] of line.entries()) {
    if (index > 0) expect(renewed).toContain(lease.leaseId);
    const detail = decided.get(lease.leaseId)!.detail as Record<string, unknown>;
    expect(detail).toMatchObject({ effect: 'allow', policy_revision: lease.policyRevision });
    if (index > 0) expect(detail['renewal']).toBe(index);
    expect(detail['reason']).not.toBe('');
  }
  expect(
    ofKind('approval.used')
      .map(({ detail }) => JSON.stringify(detail))
      .join(),
  ).toContain(approvalId);
}
