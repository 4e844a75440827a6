import { durationFromMs, timestampFromMs } from '@bufbuild/protobuf/wkt';
import { fieldInvalid } from '../domain/errors.ts';
import type { createReporter } from '../domain/report.ts';
import type { Clock } from '../domain/time.ts';
import { ReportService } from '../gen/leasehold/v1/report_service_pb.js';
import { service } from './call.ts';
import { instantOf, kindMessage, millisOf, tierMessage } from './convert.ts';

const month = 30 * 86_400_000;

export function reportService(report: ReturnType<typeof createReporter>, clock: Clock) {
  return service(ReportService, {
    getReport: async (request, { caller }) => {
      const now = clock.now();
      const since = instantOf(request.since) ?? now - month;
      if (since > now) throw fieldInvalid('since', 'lies in the future');
      const result = await report(caller.tenant, {
        since,
        unusedFor: millisOf(request.unusedFor) ?? now - since,
        reviewAhead: millisOf(request.reviewAhead) ?? month,
      });
      return {
        since: timestampFromMs(result.since),
        until: timestampFromMs(result.until),
        policyRevision: result.revision,
        agents: result.agents.map(({ agent, review, ...counts }) => ({
          agent: agent.name,
          owner: agent.owner,
          risk: agent.risk ?? '',
          reviewBy: agent.reviewBy ?? '',
          review,
          tasks: BigInt(counts.tasks),
          issued: BigInt(counts.issued),
          renewed: BigInt(counts.renewed),
          denied: BigInt(counts.denied),
        })),
        tools: result.tools.map(({ revocation, agents, issued, ...tool }) => ({
          ...tool,
          tier: tierMessage(tool.tier),
          revocationKind: kindMessage(revocation),
          agents: BigInt(agents),
          issued: BigInt(issued),
        })),
        unusedGrants: result.unusedGrants.map(({ rule, ...grant }) => ({
          ...grant,
          tier: tierMessage(grant.tier),
          policyRule: rule,
        })),
        grants: BigInt(result.grants),
        unused: BigInt(result.unused),
        grantsIncomplete: result.grantsIncomplete,
        denials: result.denials.map(({ rule, count, ...denial }) => ({
          ...denial,
          tier: tierMessage(denial.tier),
          policyRule: rule,
          count: BigInt(count),
        })),
        approvals: result.approvals.map(({ outcome, count, medianLatency }) => ({
          outcome,
          count: BigInt(count),
          ...(medianLatency === undefined ? {} : { medianLatency: durationFromMs(medianLatency) }),
        })),
        leaseOutcomes: result.leaseOutcomes.map((entry) => ({ ...entry, count: BigInt(entry.count) })),
        taskOutcomes: result.taskOutcomes.map((entry) => ({ ...entry, count: BigInt(entry.count) })),
        controls: result.controls.map((control) => ({ ...control })),
      };
    },
  });
}
