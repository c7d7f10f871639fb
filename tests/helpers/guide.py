"""The three examples of Pepper's guide, verbatim. The last two contain only what differs from the first."""

from __future__ import annotations

REWARD_EARNED = """
{
"_id": "xxxx",
"context": {
"tenant": {
"_id": "xxxx",
"title": "The Grill"
},
"user": {
"_id": "xxxx",
"fullName": "Tom Jones",
"primaryPlatform": "IOS"
},
"location": {
"_id": "xxx",
"title": "Arches",
"geo": [
-0.0970637,
51.5045788
],
"regions": [],
"tags": [
""
]
},
"tags": []
},
"tenantId": "xxxx",
"type": "REWARD_EARNED",
"source": "API_SERVER",
"version": "0",
"when": {
"timezone": "Europe/London",
"timestamp": "2021-03-05T13:37:52.194Z",
"year": 2021,
"monthofyear": 2,
"weekofyear": 10,
"dayofmonth": 5,
"dayofweek": 5,
"daypart": "LUNCH"
},
"metadata": {
"awardId": "xxxxx",
"perkId": "xxxxx",
"loyaltyEarned": 2,
"pointsAdded": 2,
"pointsAvailable": 2,
"trigger": "GLOBAL"
},
"environment": "BETA"
}
"""
REDEEM_PERK = """
{
"type": "REDEEM_PERK",
"metadata": {
"awardId": "xxx",
"perkId": "xxx",
"pointsAvailable": 5,
"pointsRedeemed": 16
}
}
"""
AWARD_POINTS_REFUNDED = """
{
"type": "AWARD_POINTS_REFUNDED",
"metadata": {
"awardId": "xxx",
"perkId": "xxx",
"pointsAvailable": 15,
"pointsRefunded": 5
}
}
"""
