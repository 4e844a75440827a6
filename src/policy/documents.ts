import type { ArgumentLimit, ArgumentSpec } from '../domain/arguments.ts';
import type { RevocationKind, Tier } from '../domain/model.ts';
import type { SenderConstraint } from '../domain/policy.ts';
import type { SubjectKind } from '../domain/signals/model.ts';

/** The documents as written, once their schema has checked them. Kept in step with `schemas/*.schema.json`. */
interface Header<Kind extends string, Metadata, Spec> {
  apiVersion: 'leasehold.dev/v1';
  kind: Kind;
  metadata: Metadata;
  spec: Spec;
}

interface Metadata {
  name: string;
  owner: string;
  description?: string;
  labels?: Record<string, string>;
}

export type AgentDocument = Header<
  'Agent',
  Metadata & { reviewBy?: string },
  { workloads: string[]; risk?: string; delegation?: DelegationSpec }
>;
export type ToolDocument = Header<
  'Tool',
  Metadata,
  { resource: string; workloads?: string[]; ttl?: TtlSpec; tiers: Partial<Record<Tier, TierSpec>> }
>;
export type PolicyDocument = Header<'Policy', Metadata, { reevaluate?: boolean; rules: RuleSpec[] }>;
export type DefinitionsDocument = Header<
  'Definitions',
  Metadata,
  { conditions?: Record<string, string>; lists?: Record<string, string[]> }
>;
export type DefaultsDocument = Header<'Defaults', Metadata, { ttl?: TtlSpec; timeZone?: string }>;
export type PolicyTestDocument = Header<'PolicyTest', Metadata, { cases: PolicyCase[] }>;
/** What a revision is made of. */
export type AnyDocument = AgentDocument | ToolDocument | PolicyDocument | DefinitionsDocument | DefaultsDocument;

/** Whom its tasks may hand work on to. */
export interface DelegationSpec {
  to: string[];
  maxDepth?: number;
  maxOpenChildren?: number;
}

/** What is left out comes from the level above: tier, tool, organisation. */
export interface TtlSpec {
  min?: string;
  default?: string;
  max?: string;
}

export type ProviderName = 'jwt' | 'postgres' | 'vault';

export interface TierSpec {
  provider: string;
  revocation: RevocationKind;
  canary?: boolean;
  ttl?: TtlSpec;
  actions?: string[];
  arguments?: Record<string, Partial<ArgumentSpec> & Pick<ArgumentSpec, 'type'>>;
  jwt?: Record<string, unknown>;
  postgres?: Record<string, unknown>;
  vault?: Record<string, unknown>;
}

export interface RuleSpec {
  name: string;
  agents: string[];
  tools: string[];
  tiers: Tier[];
  effect: 'allow' | 'deny' | 'require_approval';
  when?: string;
  timeZone?: string;
  reason?: string;
  obligations?: ObligationsSpec;
}

export interface ObligationsSpec {
  ttl?: string;
  maxUses?: number;
  renewal?: RenewalSpec;
  senderConstraint?: SenderConstraint;
  arguments?: Record<string, ArgumentLimit>;
  approval?: ApprovalSpec;
}

export interface RenewalSpec {
  scope?: 'task' | 'line';
  max?: number;
  maxAge?: string;
  notBefore?: string;
  condition?: string;
  requireHeartbeat?: boolean;
  approvalAfter?: { count?: number; age?: string };
}

/** With effect `require_approval`: who approves, and what the approval then covers. */
export interface ApprovalSpec {
  approvers?: string[];
  count?: number;
  uses?: number;
  expires?: string;
  validFor?: string;
  coolDown?: string;
}

/** One question to the policies of a directory, and the answer that they must give. */
export interface PolicyCase {
  name: string;
  request: {
    agent: string;
    tool: string;
    tier: Tier;
    arguments?: Record<string, string | number | boolean>;
    workload?: string;
    now?: string;
    task?: {
      opener?: string;
      orchestrator?: string;
      context?: Record<string, string>;
      labels?: Record<string, string>;
      age?: string;
      remaining?: string;
      depth?: number;
      heartbeat?: boolean;
    };
    renewal?: {
      count?: number;
      age?: string;
      sinceIssue?: string;
      sinceApproval?: { count: number; age: string };
    };
    held?: Record<string, number>;
    called?: Record<string, { reported?: number; attested?: number }>;
    earlier?: { credentials: number; age: string };
    rates?: Record<string, number>;
    signals?: { subject: SubjectKind; kind: string; value?: number; source?: string }[];
    environment?: Record<string, string>;
  };
  expect: { effect: 'allow' | 'deny' | 'needs_approval'; rule?: string; ttl?: string; reason?: string };
}
