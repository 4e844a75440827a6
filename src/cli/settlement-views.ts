import type { Lease } from '../gen/leasehold/v1/common_pb.js';
import { FindingKind, type Finding, type TargetResult } from '../gen/leasehold/v1/settlement_service_pb.js';
import { leaseStateName, leaseTone, outcomeName, revocationName, tierName } from './names.ts';
import { fields, line, moment, relative, toned } from './output.ts';
import { printable } from './printable.ts';

/** One lease with where its settlement stands. */
export function showLease(lease: Lease | undefined): void {
  if (lease === undefined) return;
  const { settlement } = lease;
  const cause = settlement?.cause ?? '';
  const state = outcomeName(lease.outcome) || leaseStateName(lease.state);
  fields([
    ['lease', lease.leaseId],
    ['task', lease.taskId],
    ['state', { text: `${state}${cause === '' ? '' : ` (${cause})`}`, tone: leaseTone(lease) }],
    ['tool', `${lease.tool}:${tierName(lease.tier)}`],
    ['agent', lease.agent],
    ['workload', lease.workload],
    ['provider', lease.provider],
    ['target', settlement?.target],
    ['handle', settlement?.handle],
    ['revocation', revocationName(lease.revocationKind)],
    ['rule', lease.policyRule],
    ['renews', lease.renewedFromLeaseId],
    ['issued', moment(lease.issueTime)],
    ['expires', moment(lease.expireTime)],
    ['settlement begun', moment(settlement?.beginTime)],
    ['settled', moment(lease.settleTime)],
    ['dead by', moment(lease.deadBy)],
    ['attempts', lease.settleAttempts === 0 ? '' : String(lease.settleAttempts)],
    ['last error', { text: lease.settleError, tone: 'bad' }],
    ['next attempt', moment(settlement?.nextAttemptTime)],
    ['abandoned by', settlement?.abandonedBy],
    ['abandoned', moment(settlement?.abandonTime)],
    ['reason', settlement?.abandonReason],
    ['to do', { text: settlement?.advice ?? '', tone: 'warn' }],
  ]);
}

/** Below a list: what to do about each lease that needs somebody. */
export function showAdvice(leases: readonly Lease[]): void {
  const needy = leases.filter((lease) => (lease.settlement?.advice ?? '') !== '');
  if (needy.length === 0) return;
  line();
  line('to do:');
  fields(needy.map((lease) => [`  ${lease.leaseId}`, lease.settlement!.advice]));
}

const findings: Record<FindingKind, string> = {
  [FindingKind.UNSPECIFIED]: 'unknown',
  [FindingKind.STRAY_UNKNOWN]: 'stray (its lease is not known here)',
  [FindingKind.STRAY_SETTLED]: 'stray (its lease is settled)',
  [FindingKind.MISSING]: 'missing (its lease is active)',
};

export function showFinding(target: string, finding: Finding): void {
  const made = finding.makeTime === undefined ? '' : `, made ${relative(finding.makeTime)}`;
  const what = `${target}  ${finding.handle}  ${findings[finding.kind] ?? 'unknown'}${made}`;
  const after = finding.settled ? ', revoked' : finding.error === '' ? '' : `, not revoked: ${finding.error}`;
  line(toned(printable(what + after), finding.settled ? 'warn' : 'bad'));
}

export function showResult(provider: string, target: string, result: TargetResult): void {
  const { held, leases, strays, settled, missing, unmarked, young, irrevocable, error } = result;
  const counts = { strays, revoked: settled, missing, irrevocable, 'too young': young, unmarked };
  const parts = Object.entries(counts).flatMap(([name, n]) => (n > 0n ? [`${n} ${name}`] : []));
  const summary = parts.length === 0 ? 'nothing differs' : parts.join(', ');
  line(printable(`${target} (${provider})  ${held} held, ${leases} active leases: ${summary}`));
  if (error !== '') line(toned(printable(`${target} was not compared to the end: ${error}`), 'bad'));
}
