import type { RevocationKind, Tier } from '../domain/model.ts';

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

export type AgentDocument = Header<'Agent', Metadata & { reviewBy?: string }, { workloads: string[] }>;
export type ToolDocument = Header<'Tool', Metadata, { resource: string; tiers: Partial<Record<Tier, TierSpec>> }>;
export type PolicyDocument = Header<'Policy', Metadata, { rules: RuleSpec[] }>;
export type AnyDocument = AgentDocument | ToolDocument | PolicyDocument;

export interface TierSpec {
  provider: string;
  revocation: RevocationKind;
  ttl: { min: string; default: string; max: string };
  actions?: string[];
  jwt?: Record<string, unknown>;
  postgres?: Record<string, unknown>;
}

export interface RuleSpec {
  name: string;
  agents: string[];
  tools: string[];
  tiers: Tier[];
  effect: 'allow' | 'deny' | 'require_approval';
  when?: string;
  reason?: string;
  obligations?: { ttl?: string; renewal?: { max?: number; maxAge?: string }; approval?: ApprovalSpec };
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
