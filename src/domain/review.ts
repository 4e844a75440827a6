import type { Agent } from './policy.ts';
import type { Instant } from './time.ts';

/** The end of the day of the review, wherever its owner is: until then it is in time. */
export function reviewEnd(agent: Pick<Agent, 'reviewBy'>): Instant | undefined {
  return agent.reviewBy === undefined ? undefined : Date.parse(agent.reviewBy) + 86_400_000;
}

export function reviewOverdue(agent: Pick<Agent, 'reviewBy'>, now: Instant): boolean {
  const end = reviewEnd(agent);
  return end !== undefined && now >= end;
}
