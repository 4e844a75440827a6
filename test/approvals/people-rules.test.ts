import { describe, expect, test } from 'vitest';
import { noArguments } from '../../src/domain/arguments.ts';
import type { Approval } from '../../src/domain/approvals/model.ts';
import { quorate } from '../../src/domain/approvals/model.ts';
import { mayDecide, namesOf, quorumsOf } from '../../src/domain/approvals/people.ts';
import type { Caller, Role } from '../../src/domain/caller.ts';

const groupsOf = ({ workload }: Pick<Caller, 'workload'>) => new Set(workload.endsWith('/gus') ? ['security'] : []);

function caller(workload: string, change: Partial<Caller> = {}): Caller {
  return {
    workload,
    tenant: 'default',
    kind: 'oidc',
    issuer: 'https://idp.test',
    expiresAt: Date.now() + 60_000,
    roles: new Set<Role>(['approver']),
    agents: new Set(),
    ...change,
  };
}

function approval(change: Partial<Approval> = {}): Approval {
  return {
    tenant: 'default',
    approvalId: 'apr_1',
    groupId: 'apr_1',
    kind: 'request',
    state: 'pending',
    taskId: 'tsk_1',
    intent: '',
    opener: 'people/boss',
    agent: 'analyst',
    parentAgent: undefined,
    workload: 'ci/agent',
    excluded: ['people/boss', 'people/grandboss'],
    tool: 't',
    tier: 'read',
    arguments: noArguments,
    policyRevision: 'sha256:x',
    policyRule: 'p/r',
    reason: '',
    justification: '',
    quorums: [{ rule: 'p/r', approvers: ['security'], count: 1 }],
    uses: 1,
    usesLeft: 1,
    validFor: 1,
    coolDown: 1,
    requestedBy: 'ci/agent',
    requestedAt: 0,
    decideBy: 1,
    decidedAt: undefined,
    expiresAt: undefined,
    coolDownUntil: undefined,
    votes: [],
    ...change,
  };
}

const may = (who: Caller, what: Approval) => mayDecide(who, what, namesOf(who, groupsOf));

describe('who may decide', () => {
  test('is in a group by configuration, or by what its attestation says', () => {
    expect(may(caller('people/gus'), approval())).toBe(true);
    expect(may(caller('people/ann'), approval())).toBe(false);
    expect(may(caller('people/ann', { groups: ['security'] }), approval())).toBe(true);
    expect(may(caller('people/gus', { roles: new Set() }), approval())).toBe(false);
    expect(may(caller('people/gus', { tenant: 'other' }), approval())).toBe(false);
  });

  test('is a workload by its name or by a pattern of whole segments', () => {
    const named = (approver: string) => approval({ quorums: [{ rule: 'p/r', approvers: [approver], count: 1 }] });
    const ann = caller('spiffe://acme.test/people/ops/ann');
    expect(may(ann, named('spiffe://acme.test/people/ops/ann'))).toBe(true);
    expect(may(ann, named('spiffe://acme.test/people/*'))).toBe(true);
    expect(may(ann, named('spiffe://acme.test/people/ops/*'))).toBe(true);
    expect(may(ann, named('spiffe://acme.test/peo/*'))).toBe(false);
    expect(may(ann, named('spiffe://acme.test/people/ops/ann/*'))).toBe(false);
  });

  test('is nobody whose issuer calls a group like a workload, or like everybody', () => {
    const forged = caller('people/eve', {
      groups: ['spiffe://acme.test/people/ann', '*', 'people/*'],
      roles: new Set(),
    });
    const names = namesOf(forged, groupsOf);
    expect(names).not.toContain('spiffe://acme.test/people/ann');
    expect(names).not.toContain('*');
    expect(quorumsOf(approval({ quorums: [{ rule: 'p/r', approvers: ['*'], count: 2 }] }), names)).toEqual([]);
  });

  test('is nobody who opened the task or one above it, nor any workload of its agent', () => {
    for (const workload of ['people/boss', 'people/grandboss', 'ci/agent']) {
      expect(may(caller(workload, { groups: ['security'] }), approval())).toBe(false);
    }
    const colleague = caller('ci/agent-2', { groups: ['security'], agents: new Set(['analyst']) });
    expect(may(colleague, approval())).toBe(false);
  });

  test('has to satisfy every rule that asks: a word counts only where its giver is named', () => {
    const quorums = [
      { rule: 'p/a', approvers: ['security'], count: 1 },
      { rule: 'p/b', approvers: ['legal'], count: 1 },
    ];
    const vote = (quorum: number) => ({
      approver: `people/${quorum}`,
      verdict: 'approve' as const,
      comment: '',
      at: 0,
      quorums: [quorum],
    });
    expect(quorate({ quorums, votes: [vote(0)] })).toBe(false);
    expect(quorate({ quorums, votes: [vote(0), { ...vote(0), approver: 'people/x' }] })).toBe(false);
    expect(quorate({ quorums, votes: [vote(0), vote(1)] })).toBe(true);
    expect(quorate({ quorums, votes: [vote(0), { ...vote(1), verdict: 'deny' }] })).toBe(false);
  });
});
